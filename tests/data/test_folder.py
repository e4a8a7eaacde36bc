from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.data import Preprocessing, open_dataset, shared_images
from optimizer.errors import DataError

SMALL = Preprocessing(resize=10, crop=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with 3, 4 and 5 images, one of them nested, and things to ignore."""
    random = np.random.RandomState(0)
    for count, name in enumerate(("cat", "ant", "bee"), start=3):
        (tmp_path / name / "more").mkdir(parents=True)
        for i in range(count):
            folder = tmp_path / name / ("more" if i == 0 else "")
            where = folder / f"{i}.{'JPG' if i % 2 else 'png'}"
            Image.fromarray(random.randint(0, 256, (12, 16, 3), dtype=np.uint8)).save(where)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.md").write_text("no class")
    return tmp_path


def test_images_and_order_match_torchvision(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    (folder / ".hidden").rmdir()  # torchvision would treat it as a class
    theirs = ImageFolder(str(folder))
    ours = open_dataset(folder)
    assert ours.classes == tuple(theirs.classes)
    assert ours.labels.tolist() == theirs.targets
    paths = [Path(path).relative_to(folder).as_posix() for path, _ in theirs.samples]
    assert [ours.image_id(i) for i in range(len(ours))] == paths
    read = list(ours.batches(5, SMALL, as_uint8=True))
    assert [len(batch.labels) for batch in read] == [5, 5, 2]
    pixels = np.concatenate([batch.images for batch in read])
    for i, (image, label) in enumerate(theirs):
        np.testing.assert_array_equal(pixels[i], SMALL.apply_uint8(image))
        assert ours.labels[i] == label


def test_hidden_folders_are_not_classes(folder: Path) -> None:
    assert open_dataset(folder).classes == ("ant", "bee", "cat")


def test_many_images_keep_their_order(folder: Path) -> None:
    data = open_dataset(folder)
    order = np.random.RandomState(1).randint(0, len(data), 500)
    seen = np.concatenate([batch.indices for batch in data.batches(7, SMALL, order=order)])
    np.testing.assert_array_equal(seen, order)


def test_a_reader_may_stop_early(folder: Path) -> None:
    batches = open_dataset(folder).batches(2, SMALL)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_the_digest_depends_on_file_names(folder: Path) -> None:
    before = open_dataset(folder).sha256
    assert open_dataset(folder).sha256 == before
    image = folder / "ant" / "1.JPG"
    image.rename(folder / "ant" / "9.JPG")
    renamed = open_dataset(folder).sha256
    assert renamed != before
    (folder / "ant" / "9.JPG").unlink()
    assert open_dataset(folder).sha256 not in (before, renamed)


def test_the_digest_depends_on_contents(folder: Path) -> None:
    """A different picture with the same name and size is a different image."""
    image = folder / "ant" / "1.JPG"
    before = open_dataset(folder)
    first, content = before.sha256, image.read_bytes()
    image.write_bytes(content[:-10] + bytes(10))
    changed = open_dataset(folder)
    assert changed.sha256 != first
    assert shared_images(before, changed) == len(before) - 1
    image.write_bytes(content)
    assert open_dataset(folder).sha256 == first


def test_copies_under_other_names_are_the_same_images(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "leak"
    for number, path in enumerate(sorted(folder.glob("ant/*"))[:2]):
        for name in ("x", "y"):
            (other / name).mkdir(parents=True, exist_ok=True)
            (other / name / f"{number}.jpg").write_bytes(path.read_bytes())
    assert shared_images(open_dataset(folder), open_dataset(other)) == 4


def test_a_corrupt_image_stops_or_is_left_out(folder: Path) -> None:
    bad = folder / "bee" / "1.JPG"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(DataError, match=r"bee/1\.JPG.*--skip-bad-images"):
        list(open_dataset(folder).batches(4, SMALL))
    with pytest.raises(DataError, match=r"bee/1\.JPG"):
        open_dataset(folder).verify()

    data = open_dataset(folder, skip_bad_images=True)
    batches = list(data.batches(4, SMALL))
    assert sum(len(batch.labels) for batch in batches) == len(data) - 1
    for batch in batches:
        np.testing.assert_array_equal(batch.labels, data.labels[batch.indices])
    assert data.skipped == ["bee/1.JPG"]
    list(data.batches(4, SMALL))
    assert data.skipped == ["bee/1.JPG"]  # counted once


def test_after_verify_every_reader_gets_the_same_images(folder: Path) -> None:
    bad = folder / "bee" / "1.JPG"
    bad.write_bytes(b"")
    data = open_dataset(folder, skip_bad_images=True)
    good = data.verify()
    assert len(good) == len(data) - 1
    assert good.skipped == ["bee/1.JPG"]
    assert good.sha256 != data.sha256
    assert "bee/1.JPG" not in [good.image_id(i) for i in range(len(good))]
    seen = np.concatenate([batch.indices for batch in good.batches(4, SMALL)])
    assert seen.tolist() == list(range(len(good)))


def test_no_readable_image_is_an_error(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        if path.suffix in (".png", ".JPG"):
            path.write_bytes(b"")
    data = open_dataset(folder, skip_bad_images=True)
    with pytest.raises(DataError, match="no image"):
        data.verify()
    with pytest.raises(DataError, match="no image"):
        list(data.batches(4, SMALL))


def test_an_empty_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no class folders.*one folder per class"):
        open_dataset(tmp_path)


def test_images_without_classes_are_rejected(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match="images but no class folders"):
        open_dataset(tmp_path)


def test_one_class_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match="only one class, cat"):
        open_dataset(tmp_path)


def test_classes_without_images_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        open_dataset(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match="1 of 2 class folders contain no images; the first is dog"):
        open_dataset(tmp_path)


def test_hidden_files_and_other_files_are_left_out_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [open_dataset(folder).image_id(i) for i in range(len(open_dataset(folder)))]
    name = expected[0].split("/")[0]
    copies = folder / name / ".ipynb_checkpoints"
    copies.mkdir()
    Image.new("RGB", (4, 4)).save(copies / "a-checkpoint.png")
    Image.new("RGB", (4, 4)).save(folder / name / "._a.png")
    (folder / name / "photo.heic").write_bytes(b"x")
    for labelled in (True, False):
        caplog.clear()
        data = open_dataset(folder, labelled=labelled)
        assert sorted(data.image_id(i) for i in range(len(data))) == sorted(expected)
        (note,) = data.notes
        assert "2 whose names start with a dot" in note
        assert "2 that are not read as images (.heic, .txt)" in note
        assert note in caplog.text


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".webp", ".bmp", ".jpe", ".tga", ".pbm"])
def test_other_formats_are_read(folder: Path, suffix: str) -> None:
    before = open_dataset(folder)
    label = before.image_id(0).split("/")[0]
    kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
    mode = "1" if suffix == ".pbm" else "RGB"
    Image.new(mode, (6, 6)).save(folder / label / f"zz{suffix}", format=kind)
    data = open_dataset(folder)
    assert len(data) == len(before) + 1
    assert data.notes == before.notes
    data.verify()


def test_a_folder_of_other_files_names_their_kinds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"contains no images; it has \.heic.*\.jfif"):
        open_dataset(tmp_path)
