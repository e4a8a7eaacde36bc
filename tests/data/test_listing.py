"""``val.txt``: ImageNet's validation images in one folder, with their labels in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.data import Preprocessing, match_classes, open_dataset
from optimizer.data.imagenet import IMAGENET_SYNSETS
from optimizer.errors import DataError

SMALL = Preprocessing(resize=None, crop=4)
NAMES = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Four uniform grey images in a folder named val."""
    folder = tmp_path / "val"
    folder.mkdir()
    for level, name in enumerate(NAMES):
        Image.new("RGB", (6, 5), (40 * level,) * 3).save(folder / name, quality=100)
    return folder


def _levels(path: Path) -> tuple[list[int], list[int]]:
    (batch,) = open_dataset(path).batches(8, SMALL, as_uint8=True)
    return [round(float(image.mean()) / 40) for image in batch.images], batch.labels.tolist()


def test_lines_give_images_and_labels_in_their_order(flat: Path) -> None:
    lines = f"# ImageNet\n{NAMES[2]} 65\n\n{NAMES[0]}   970\n{NAMES[3]} 0\n"
    (flat / "val.txt").write_text(lines)
    assert _levels(flat) == ([2, 0, 3], [65, 970, 0])
    data = open_dataset(flat)
    assert data.classes is None
    assert data.image_id(1) == NAMES[0]
    assert match_classes(data, 1000, None) is data
    with pytest.raises(DataError, match="label 970, but the model's 100 classes end at 99"):
        match_classes(data, 100, None)
    (flat / "val.txt").rename(flat / "val_map.txt")
    assert _levels(flat / "val_map.txt") == _levels(flat) == ([2, 0, 3], [65, 970, 0])


def test_the_list_may_be_next_to_the_folder(flat: Path) -> None:
    (flat.parent / "val.txt").write_text(f"{NAMES[1]} 3\n{NAMES[0]} 4\n")
    assert _levels(flat.parent / "val.txt") == ([1, 0], [3, 4])


def test_synsets_are_mapped_to_the_models_outputs(flat: Path) -> None:
    (flat / "val.txt").write_text(f"{NAMES[0]} n03888257\n{NAMES[1]} n01440764\n")
    mapped = match_classes(open_dataset(flat), 1000, None)
    assert [IMAGENET_SYNSETS[label] for label in mapped.labels] == ["n03888257", "n01440764"]


def test_class_folders_are_preferred_to_a_list(flat: Path) -> None:
    for name, image in zip(("a", "b"), NAMES, strict=False):
        (flat / name).mkdir()
        (flat / image).rename(flat / name / image)
    (flat / "val.txt").write_text(f"{NAMES[2]} 1\n")
    assert open_dataset(flat).classes == ("a", "b")


def test_the_digest_depends_on_the_labels(flat: Path) -> None:
    (flat / "val.txt").write_text(f"{NAMES[0]} 1\n{NAMES[1]} 2\n")
    before = open_dataset(flat).sha256
    (flat / "val.txt").write_text(f"{NAMES[0]} 1\n{NAMES[1]} 3\n")
    assert open_dataset(flat).sha256 != before


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "lists no images"),
        ("one.JPEG\n", r"line 1: 'one\.JPEG' \(each line is IMAGE LABEL"),
        (f"{NAMES[0]} 1\n../{NAMES[1]} 2\n", "line 2: '../ILSVRC"),
        (f"{NAMES[0]} 1\n{NAMES[0]} 2\n", "line 2: .* is listed twice"),
        (
            f"{NAMES[0]} 1\nno.JPEG 2\nnot.JPEG 2\n",
            r"2 of 3 listed images are missing; the first is no\.JPEG",
        ),
        (
            f"{NAMES[0]} 1\n{NAMES[1]} cat\n",
            r"mixes labels that are numbers and labels that are names \(1, cat\)",
        ),
        (
            f"{NAMES[0]} -1\n{NAMES[1]} 2\n",
            r"mixes labels that are numbers and labels that are names \(-1, 2\)",
        ),
    ],
)
def test_lists_that_cannot_be_used_are_rejected(flat: Path, lines: str, message: str) -> None:
    (flat / "val.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        open_dataset(flat)


def test_a_binary_file_is_not_a_list(flat: Path) -> None:
    (flat / "val.txt").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(DataError, match="cannot read"):
        open_dataset(flat / "val.txt")
