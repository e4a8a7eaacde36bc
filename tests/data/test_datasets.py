from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import DataError


def test_a_limit_takes_a_stratified_subset() -> None:
    whole = open_dataset("digits:test")
    part = open_dataset("digits:test", limit=100)
    assert len(part) == 100
    assert np.bincount(part.labels).min() >= 9
    assert part.name == "digits:test"
    assert part.sha256 != whole.sha256
    assert part.sha256 == open_dataset("digits:test", limit=100).sha256
    assert part.sha256 != open_dataset("digits:test", limit=100, seed=1).sha256
    assert open_dataset("digits:test", limit=10_000).sha256 == whole.sha256
    with pytest.raises(DataError, match="at least one"):
        open_dataset("digits", limit=0)


def test_subsets_keep_images_and_labels_together() -> None:
    whole = open_dataset("digits")
    part = open_dataset("digits", limit=50)
    preprocessing = Preprocessing.digits(8)
    (everything,) = whole.batches(2000, preprocessing)
    (some,) = part.batches(2000, preprocessing)
    for i in range(len(part)):
        original = int(part.image_id(i).split("/")[1])
        np.testing.assert_array_equal(some.images[i], everything.images[original])
        assert part.labels[i] == whole.labels[original]


def test_batch_sizes_do_not_change_the_images() -> None:
    data = open_dataset("digits", limit=50)
    preprocessing = Preprocessing.digits(16)
    (whole,) = data.batches(64, preprocessing)
    parts = list(data.batches(7, preprocessing))
    assert [len(part.labels) for part in parts] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    assert whole.images.shape == (50, 3, 16, 16)
    with pytest.raises(DataError, match="batch"):
        next(data.batches(0, preprocessing))


@pytest.mark.parametrize("layout", ["loose", "one folder", "nested"])
def test_unlabelled_images_are_accepted_only_if_labels_are_not_required(
    layout: str, tmp_path: Path
) -> None:
    """A folder of camera pictures: `--calib` needs no classes."""
    for number in range(6):
        folder = {"loose": ".", "one folder": "shots", "nested": f"shots/{number % 2}"}[layout]
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), 10 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    data = open_dataset(tmp_path, limit=5, labelled=False)
    assert (len(data), data.classes, set(data.labels)) == (5, None, {0})
    (batch,) = data.batches(8, Preprocessing.digits(8))
    assert len({float(image.mean()) for image in batch.images}) == 5
    with pytest.raises(DataError, match=r"no class folders|only one class"):
        open_dataset(tmp_path)


def test_no_image_is_left_out_because_of_the_layout(tmp_path: Path) -> None:
    """Images next to folders, an empty folder, a folder of thumbnails."""
    for folder, count in ((".", 4), ("a", 1), ("b", 1), (".thumbnails", 6)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{number}.png")
    assert len(open_dataset(tmp_path, labelled=False)) == 6
    for loose in tmp_path.glob("*.png"):
        loose.unlink()
    assert open_dataset(tmp_path, labelled=False).classes == ("a", "b")
    (tmp_path / "empty").mkdir()
    assert open_dataset(tmp_path, labelled=False).classes is None


def test_existing_labels_are_used(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert open_dataset(tmp_path, labelled=False).classes == ("cat", "dog")
    np.savez(tmp_path / "bare.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    assert len(open_dataset(tmp_path / "bare.npz", labelled=False)) == 3
    with pytest.raises(DataError, match="no array 'labels'"):
        open_dataset(tmp_path / "bare.npz")
    np.savez(tmp_path / "odd.npz", images=np.array(5))
    with pytest.raises(DataError, match="of shape"):
        open_dataset(tmp_path / "odd.npz", labelled=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        open_dataset(tmp_path / "empty", labelled=False)


def test_unknown_data_is_rejected_with_the_accepted_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data at 'digit'.*digits:train.*file\.npz"):
        open_dataset("digit")
    (tmp_path / "data.parquet").write_text("1,2")
    with pytest.raises(DataError, match="no folder, list, archive or NPZ file"):
        open_dataset(tmp_path / "data.parquet")


def test_the_import_is_light() -> None:
    code = (
        "import sys, optimizer.data, optimizer.models, optimizer.training\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'PIL', 'timm'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
