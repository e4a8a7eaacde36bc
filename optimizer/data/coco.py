"""Detection data in COCO's format: one JSON file of annotations, and a folder of images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.dataset import ImageDataset
from optimizer.data.folder import FileSource
from optimizer.data.objects import Objects, check_boxes, dominant_classes
from optimizer.errors import DataError

__all__ = ["image_size_of", "open_coco"]

_IDS = {"id", "image_id", "category_id"}
_FORMAT = "a COCO file has the lists images, annotations and categories"


def open_coco(path: Path, images: Path | None, *, skip_bad_images: bool = False) -> ImageDataset:
    """Open COCO annotations.

    Classes are the categories in the order of their ids, which may have gaps and begin at any number.
    Images without annotations are kept: detections there are false.

    Args:
        path: The JSON file.
        images: Folder of the images; by default the one of the JSON file.
        skip_bad_images: Leave out images that cannot be decoded instead of failing.

    Raises:
        DataError: The file is not COCO's, an annotation belongs to no image or category, an image
            file is missing or of another size, or a box is impossible.
    """
    content = _read(path)
    root = images or path.parent
    if not root.is_dir():
        raise DataError(f"no such folder of images: {root}", hint="pass it as --images")
    categories = _categories(path, content["categories"])
    entries = sorted(content["images"], key=lambda entry: entry["id"])
    by_image = _annotations_by_image(path, content["annotations"], entries)
    files, objects = [], []
    for entry in entries:
        name = str(entry["file_name"])
        file = root / name
        if not file.is_file():
            raise DataError(
                f"{path.name} names the image {name}, which is not in {root}",
                hint="pass the folder of the images as --images",
            )
        files.append(name)
        size = _checked_size(path, entry, file, skip_bad_images)
        objects.append(_objects(path, name, size, by_image[entry["id"]], categories))
    names = [name for _, name in sorted(categories.values())]
    return ImageDataset(
        name=str(path),
        classes=tuple(names),
        labels=dominant_classes(objects, len(names)),
        source=FileSource(root, files),
        positions=np.arange(len(files), dtype=np.int64),
        skip_bad_images=skip_bad_images,
        objects=tuple(objects),
        category_ids=tuple(sorted(categories)),
    )


def image_size_of(file: Path) -> tuple[int, int] | None:
    """Width and height of an image file as stored, before any EXIF rotation, from its header.

    Returns:
        ``None`` if the header cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            return int(width), int(height)
    except (OSError, ValueError, SyntaxError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", hint=_FORMAT) from error
    if not isinstance(content, dict):
        raise DataError(f"{path.name} is not a COCO file", hint=_FORMAT)
    for name, required in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id", "category_id", "bbox")),
        ("categories", ("id", "name")),
    ):
        entries = content.get(name)
        if not isinstance(entries, list):
            raise DataError(f"{path.name} has no list {name}", hint=_FORMAT)
        for entry in entries:
            missing = [key for key in required if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise DataError(
                    f"{path.name}: an entry of {name} has no {missing[0]}", hint=_FORMAT
                )
            for key in _IDS.intersection(required):
                entry[key] = _whole_number(path, name, key, entry[key])
            if not isinstance(entry.get("file_name", ""), str):
                raise DataError(
                    f"{path.name}: the file_name {entry['file_name']!r} is not a text", hint=_FORMAT
                )
    if not content["images"] or not content["categories"]:
        raise DataError(f"{path.name} has no images or no categories", hint=_FORMAT)
    return content


def _whole_number(path: Path, name: str, key: str, value: Any) -> int:
    """An id, which some tools write as text or with a decimal point."""
    whole = not isinstance(value, bool) and (
        isinstance(value, int)
        or (isinstance(value, float) and value.is_integer())
        or (isinstance(value, str) and value.isdecimal())
    )
    if not whole:
        raise DataError(
            f"{path.name}: {key} {value!r} in {name} is not a whole number",
            hint="number images and categories; file_name and name are for their names",
        )
    return int(value)


def _categories(path: Path, entries: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, str]]:
    """Index and name by category id."""
    ids = sorted(entry["id"] for entry in entries)
    if len(set(ids)) < len(ids):
        raise DataError(f"{path.name} has two categories with the same id")
    names = {entry["id"]: str(entry["name"]) for entry in entries}
    if len(set(names.values())) < len(names):
        raise DataError(f"{path.name} has two categories with the same name")
    return {id_: (index, names[id_]) for index, id_ in enumerate(ids)}


def _annotations_by_image(
    path: Path, annotations: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]]
) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = {entry["id"]: [] for entry in images}
    if len(by_image) < len(images):
        raise DataError(f"{path.name} has two images with the same id")
    for annotation in annotations:
        image = annotation["image_id"]
        if image not in by_image:
            raise DataError(
                f"{path.name} has an annotation of image {image}, which it does not list",
                hint="remove the annotation, or add the image",
            )
        by_image[image].append(annotation)
    return by_image


def _checked_size(
    path: Path, entry: Mapping[str, Any], file: Path, skip_bad_images: bool
) -> tuple[int, int]:
    stated = entry.get("width"), entry.get("height")
    stored = image_size_of(file)
    if stored is None:
        if skip_bad_images and isinstance(stated[0], int) and isinstance(stated[1], int):
            return stated[0], stated[1]  # left out when it is read
        raise DataError(
            f"cannot read the image {file}", hint="remove or replace it, or use --skip-bad-images"
        )
    if None not in stated and stated != stored:
        turned = " (annotated after an EXIF rotation?)" if stated == stored[::-1] else ""
        raise DataError(
            f"{path.name} states {stated[0]} x {stated[1]} pixels for {file.name}, "
            f"but the file has {stored[0]} x {stored[1]}{turned}",
            hint="store the images upright, or annotate the pixels as they are stored",
        )
    return stored


def _objects(
    path: Path,
    name: str,
    size: tuple[int, int],
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[int, tuple[int, str]],
) -> Objects:
    where = f"{name} in {path.name}"
    for annotation in annotations:
        if annotation["category_id"] not in categories:
            raise DataError(
                f"an annotation of {where} has the category {annotation['category_id']}, "
                "which the file does not list"
            )
    try:
        corners = [(left, top, *size) for left, top, *size in (a["bbox"] for a in annotations)]
        boxes = np.array(corners, np.float64).reshape(len(corners), 4)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a bbox of {where} is not [left, top, width, height]", hint=_FORMAT
        ) from error
    boxes[:, 2:] += boxes[:, :2]
    check_boxes(boxes, size, where)
    areas = [_area(a, box, where) for a, box in zip(annotations, boxes.tolist(), strict=True)]
    return Objects(
        size=size,
        boxes=boxes.astype(np.float32),
        classes=np.array([categories[a["category_id"]][0] for a in annotations], np.int64),
        areas=np.array(areas, np.float32),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], np.bool_),
    )


def _area(annotation: Mapping[str, Any], box: Sequence[float], where: str) -> float:
    """The area that decides whether an object is small, medium or large: that of its outline."""
    area = annotation.get("area")
    if area is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    if isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area < math.inf:
        raise DataError(
            f"the area {area!r} of an object in {where} is not a number of pixels",
            hint="correct it, or leave it out: it is then that of the box",
        )
    return float(area)
