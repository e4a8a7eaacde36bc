"""COCO files, YOLO folders and the bundled scenes; and what is wrong with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optimizer.data import ImageDataset, Preprocessing, open_dataset
from optimizer.errors import DataError


@pytest.fixture(scope="module")
def scenes() -> dict[str, ImageDataset]:
    return {part: open_dataset(f"digits-scenes:{part}") for part in ("train", "test")}


def _pixels(data: ImageDataset, index: int) -> np.ndarray:
    plain = Preprocessing(resize=None, crop=128)
    return next(data.batches(1, plain, as_uint8=True, order=[index])).images[0]


def test_scenes_are_the_same_every_time(scenes: dict[str, ImageDataset]) -> None:
    assert open_dataset("digits-scenes:test").sha256 == scenes["test"].sha256
    assert (len(scenes["train"]), len(scenes["test"])) == (1800, 300)


def test_splits_of_scenes_share_no_digit_and_no_background(scenes: dict[str, ImageDataset]) -> None:
    digits = [set(map(bytes, _digits(f"digits:{part}"))) for part in ("train", "test")]
    assert len(digits[0] & digits[1]) < 5  # a few of the bundled digits occur twice
    from optimizer.data.digit_scenes import _photos

    widths = [[photo.shape[1] for photo in _photos(part)] for part in ("train", "test")]
    assert [a + b for a, b in zip(*widths, strict=True)] == [640, 640]


def _digits(name: str) -> np.ndarray:
    data = open_dataset(name)
    (batch,) = data.batches(len(data), Preprocessing(resize=None, crop=8), as_uint8=True)
    return batch.images


def test_boxes_of_scenes_hold_the_ink(scenes: dict[str, ImageDataset]) -> None:
    """Digits are brighter than the darkened photographs around them."""
    data = scenes["test"]
    assert data.objects is not None
    brighter = total = 0
    for index in range(40):
        pixels = _pixels(data, index).mean(axis=2)
        for left, top, right, bottom in data.objects[index].boxes.astype(int):
            inside = pixels[top:bottom, left:right]
            brighter += inside.max() > 180
            total += 1
            assert 0 <= left < right <= 128
            assert 0 <= top < bottom <= 128
    assert total > 60
    assert brighter > 0.95 * total


def test_some_scenes_are_empty_and_a_subset_keeps_objects(scenes: dict[str, ImageDataset]) -> None:
    data = scenes["test"]
    assert data.objects is not None
    counts = [len(objects.classes) for objects in data.objects]
    assert min(counts) == 0
    assert max(counts) == 4
    subset = open_dataset("digits-scenes:test", limit=30)
    assert subset.objects is not None
    assert len(subset.objects) == len(subset) == 30
    assert [o.digest for o in subset.objects] == [
        data.objects[int(position)].digest for position in subset.positions
    ]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="not a split") as caught:
        open_dataset("digits-scenes")
    assert "digits-scenes:test" in str(caught.value.hint)


# --- COCO --------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    """Three images, of which the last is empty; ids with gaps."""
    images = tmp_path / "images"
    images.mkdir()
    sizes = [(60, 40), (30, 50), (20, 20)]
    for number, (width, height) in enumerate(sizes):
        color = (40 * number, 100, 200)
        Image.new("RGB", (width, height), color).save(images / f"{number}.png")
    return {
        "images": [
            {"id": 10 * n + 7, "file_name": f"{n}.png", "width": w, "height": h}
            for n, (w, h) in enumerate(sizes)
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [5, 6, 20, 10], "area": 150},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            {"id": 3, "image_id": 17, "category_id": 3, "bbox": [1, 2, 8, 9]},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def _write(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_coco_file_is_read(coco: dict[str, Any], tmp_path: Path) -> None:
    data = open_dataset(_write(coco, tmp_path), image_folder=tmp_path / "images")
    assert data.classes == ("dog", "cat")  # by id: 3 and 90
    assert data.category_ids == (3, 90)
    assert data.objects is not None
    first, second, third = data.objects
    assert first.size == (60, 40)
    np.testing.assert_array_equal(first.boxes, [[5, 6, 25, 16], [0, 0, 60, 40]])
    assert first.classes.tolist() == [1, 0]
    assert first.areas.tolist() == [150, 2400]  # the segmentation's, and the box's
    assert first.crowd.tolist() == [False, True]
    assert second.classes.tolist() == [0]
    assert third.boxes.shape == (0, 4)
    assert data.labels.tolist() == [0, 0, 2]  # the largest class; the last image has none
    assert _pixels_of(data, 1)[0, 0].tolist() == [40, 100, 200]


def _pixels_of(data: ImageDataset, index: int) -> np.ndarray:
    letterbox = Preprocessing.detection(64)
    return next(data.batches(1, letterbox, as_uint8=True, order=[index])).images[0]


def test_annotations_are_part_of_the_digest(coco: dict[str, Any], tmp_path: Path) -> None:
    path = _write(coco, tmp_path)
    before = open_dataset(path, image_folder=tmp_path / "images").sha256
    coco["annotations"][0]["bbox"] = [5, 6, 20, 11]
    _write(coco, tmp_path)
    assert open_dataset(path, image_folder=tmp_path / "images").sha256 != before


Change = Callable[[dict[str, Any]], None]


def _set(kind: str, index: int, **values: Any) -> Change:
    return lambda content: content[kind][index].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("annotations", 0, bbox=[5, 6, 0, 10]), "has no area"),
        (_set("annotations", 0, bbox=[5, 6, float("nan"), 10]), "is not a number"),
        (_set("annotations", 0, bbox=[50, 6, 20, 10]), "outside the image of 60 x 40"),
        (_set("annotations", 0, bbox=[1, 2, 3]), r"is not \[left, top, width, height\]"),
        (lambda c: [a.update(bbox=[1, 2]) for a in c["annotations"]], r"is not \[left, top, width"),
        (_set("annotations", 0, area=-4), "area -4 of an object in .* is not a number of pixels"),
        (_set("annotations", 0, area=float("nan")), "area nan"),
        (_set("annotations", 0, image_id="a"), "image_id 'a' in annotations is not a whole number"),
        (
            _set("annotations", 0, category_id=None),
            "category_id None in annotations is not a whole",
        ),
        (_set("images", 0, id=1.5), r"id 1\.5 in images is not a whole number"),
        (_set("categories", 0, id=float("inf")), "id inf in categories is not a whole number"),
        (_set("images", 0, file_name=None), "file_name None is not a text"),
        (_set("annotations", 0, image_id=8), "annotation of image 8, which it does not list"),
        (_set("annotations", 0, category_id=4), "category 4, which the file does not list"),
        (_set("images", 0, file_name="x.png"), "names the image x.png, which is not in"),
        (_set("images", 0, width=40, height=60), "states 40 x 60 .* EXIF rotation"),
        (_set("images", 0, width=61), "states 61 x 40 pixels"),
        (_set("categories", 0, id=3), "two categories with the same id"),
        (_set("categories", 0, name="dog"), "two categories with the same name"),
        (lambda content: content.pop("annotations"), "no list annotations"),
        (lambda content: content["annotations"][0].pop("bbox"), "entry of annotations has no bbox"),
        (lambda content: content["images"].clear(), "no images or no categories"),
    ],
)
def test_what_is_wrong_with_a_coco_file_is_said(
    coco: dict[str, Any], tmp_path: Path, change: Change, message: str
) -> None:
    content = copy.deepcopy(coco)
    change(content)
    with pytest.raises(DataError, match=message):
        open_dataset(_write(content, tmp_path), image_folder=tmp_path / "images")


def test_images_are_looked_for_beside_the_file(coco: dict[str, Any], tmp_path: Path) -> None:
    path = _write(coco, tmp_path / "images")
    assert len(open_dataset(path)) == 3
    with pytest.raises(DataError) as caught:
        open_dataset(_write(coco, tmp_path))
    assert "--images" in str(caught.value.hint)
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(path, image_folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a COCO file"):
        open_dataset("digits-scenes:test", image_folder=tmp_path)


def test_images_of_any_mode_are_read(coco: dict[str, Any], tmp_path: Path) -> None:
    images = tmp_path / "images"
    Image.new("L", (60, 40), 9).save(images / "0.png")
    Image.new("CMYK", (30, 50), (0, 0, 0, 0)).save(images / "1.jpg")
    coco["images"][1]["file_name"] = "1.jpg"
    data = open_dataset(_write(coco, tmp_path), image_folder=images)
    assert _pixels_of(data, 0)[0, 0].tolist() == [9, 9, 9]
    assert _pixels_of(data, 1)[0, 0].min() > 250


# --- YOLO --------------------------------------------------------------------------------------


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 20), (number, 2, 3)).save(root / "images" / f"{number}.png")
    (root / "labels" / "0.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.25 0.5 0.5 1\n")
    (root / "data.yaml").write_text("names: [circle, square]\n")
    return root


def test_a_yolo_folder_is_read(yolo: Path) -> None:
    data = open_dataset(yolo)
    assert data.classes == ("circle", "square")
    assert data.objects is not None
    np.testing.assert_allclose(data.objects[0].boxes, [[15, 5, 25, 15], [0, 0, 20, 20]])
    assert data.objects[0].classes.tolist() == [1, 0]
    assert data.objects[1].boxes.shape == (0, 4)  # no text file: no object


def test_yolo_files_side_by_side_with_a_list_of_classes(yolo: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in [*(yolo / "images").iterdir(), *(yolo / "labels").iterdir()]:
        path.rename(flat / path.name)
    (flat / "classes.txt").write_text("circle\nsquare\n")
    data = open_dataset(flat)
    assert data.objects is not None
    assert [len(objects.classes) for objects in data.objects] == [2, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2, but there are 2 classes"),
        ("0 0.5 0.5 0.1", "is incomplete"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", "is a polygon"),
        ("cat 0.5 0.5 0.1 0.1", "is not a box"),
        ("0 0.5 0.5 0.1 0", "has no area"),
        ("0 0.5 nan 0.1 0.1", "is not a number"),
        ("0 20 10 5 5", "outside the image"),
    ],
)
def test_what_is_wrong_with_a_yolo_line_is_said(yolo: Path, line: str, message: str) -> None:
    (yolo / "labels" / "0.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        open_dataset(yolo)


def test_a_yolo_folder_needs_class_names_and_images(yolo: Path) -> None:
    (yolo / "labels" / "7.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"7.txt has no image"):
        open_dataset(yolo)
    (yolo / "data.yaml").unlink()
    with pytest.raises(DataError, match="does not name its classes"):
        open_dataset(yolo)


# --- letterbox ---------------------------------------------------------------------------------


def test_a_letterbox_keeps_the_proportions_and_fills_with_the_mean() -> None:
    letterbox = Preprocessing.detection(100)
    image = Image.new("RGB", (200, 80), (255, 0, 0))
    pixels = letterbox.apply_uint8(image)
    assert letterbox.fitted_size(200, 80) == (100, 40)
    assert pixels.shape == (100, 100, 3)
    assert (pixels[:40] == (255, 0, 0)).all()
    assert np.abs(letterbox.normalize(pixels[None])[0, :, 40:]).max() < 0.01


def test_a_letterbox_is_part_of_the_digest_and_comes_back() -> None:
    letterbox = Preprocessing.detection(64)
    assert Preprocessing.from_dict(letterbox.to_dict()) == letterbox
    assert letterbox.sha256 != Preprocessing(resize=64, crop=64).sha256
    assert "fit" not in Preprocessing(resize=64, crop=64).to_dict()
    with pytest.raises(DataError, match="letterbox of 64 pixels"):
        Preprocessing(resize=70, crop=64, fit="letterbox")
