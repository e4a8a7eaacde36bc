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


@pytest.mark.parametrize(
    "lines",
    [
        "{a}\t1\n{b}\t0\n",
        "{a},1\n{b},0\n",
        "{a}; 1\n{b}; 0\n",
        '"{a}","1"\n"{b}","0"\n',
        "filename,label\n{a},1\n{b},0\n",
        "label\tsplit\tpath\n1\tval\t{a}\n0\tval\t{b}\n",
        "\ufeff{a} 1\r\n{b} 0\r\n",
    ],
)
def test_separators_column_names_and_byte_order_marks(flat: Path, lines: str) -> None:
    text = lines.format(a=NAMES[2], b=NAMES[0])
    (flat / "val.txt").write_text(text, encoding="utf-8")
    assert _levels(flat) == ([2, 0], [1, 0])
    (flat / "list.csv").write_text(text.removeprefix("\ufeff"), encoding="utf-16")
    assert _levels(flat / "list.csv") == ([2, 0], [1, 0])


def test_a_separator_in_a_name_is_part_of_the_name(flat: Path) -> None:
    (flat / NAMES[0]).rename(flat / "one, two.jpg")
    (flat / "val.txt").write_text("one, two.jpg 3\n")
    assert _levels(flat) == ([0], [3])


def test_a_header_without_labels_in_every_line_is_rejected(flat: Path) -> None:
    (flat / "val.txt").write_text(f"filename,label\n{NAMES[0]}\n")
    with pytest.raises(DataError, match=r"line 2: .ILSVRC.*each line is IMAGE LABEL"):
        open_dataset(flat)


@pytest.mark.parametrize("prefix", ["", "val/"])
def test_mlperfs_layout(flat: Path, prefix: str) -> None:
    """``val/`` and ``val_map.txt`` in one folder."""
    (flat.parent / "val_map.txt").write_text(f"{prefix}{NAMES[3]} 7\n{prefix}{NAMES[1]} 2\n")
    assert _levels(flat.parent) == ([3, 1], [7, 2])
    (flat.parent / "train" / "cat").mkdir(parents=True)
    assert _levels(flat.parent) == ([3, 1], [7, 2])


def test_labels_from_1_are_refused_with_the_option_that_takes_them(flat: Path) -> None:
    (flat / "val.txt").write_text(f"{NAMES[0]} 1\n{NAMES[1]} 3\n")
    with pytest.raises(DataError, match=r"labels of .* are 1 to 3, .* 0 to 2.*--labels-from 1"):
        match_classes(open_dataset(flat), 3, None)
    data = match_classes(open_dataset(flat, labels_from=1), 3, None)
    assert data.labels.tolist() == [0, 2]
    (flat / "val.txt").write_text(f"{NAMES[0]} 0\n{NAMES[1]} 3\n")
    with pytest.raises(DataError, match="label 0, below --labels-from 1"):
        open_dataset(flat, labels_from=1)


def test_labels_from_1_is_for_numbers(flat: Path) -> None:
    (flat / "val.txt").write_text(f"{NAMES[0]} cat\n{NAMES[1]} dog\n")
    for name in (str(flat), "digits:test"):
        with pytest.raises(DataError, match=r"--labels-from 1.*leave it out"):
            open_dataset(name, labels_from=1)
