"""Detection data in YOLO's format: a text file of boxes beside each image.

A folder holds ``images/`` and ``labels/`` (with equal subfolders), or images and text files side by
side. A line of a text file is ``class x y width height``: the centre and size of a box as fractions of
the image. ``data.yaml`` or ``classes.txt`` names the classes, which are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.coco import image_size_of
from optimizer.data.dataset import ImageDataset
from optimizer.data.folder import FileSource, images_below
from optimizer.data.objects import Objects, check_boxes, dominant_classes
from optimizer.errors import DataError

__all__ = ["is_yolo", "open_yolo"]

_FORMAT = "a line is: class x y width height, with the centre and size as fractions of the image"


def is_yolo(root: Path) -> bool:
    """Whether a folder has YOLO's layout: ``images/`` and ``labels/``, or a list of classes."""
    both = (root / "images").is_dir() and (root / "labels").is_dir()
    return both or any((root / name).is_file() for name in ("classes.txt", "data.yaml"))


def open_yolo(root: Path, *, skip_bad_images: bool = False) -> ImageDataset:
    """Open a folder in YOLO's layout. An image without a text file has no objects.

    Raises:
        DataError: There are no images or no text files, the classes are not named, a text file has no
            image, or a line is not a box.
    """
    names = _class_names(root)
    folder = root / "images" if (root / "images").is_dir() else root
    labels = root / "labels" if folder != root else root
    images = [folder / name for name in images_below(folder)]
    if not images:
        raise DataError(f"{folder} contains no images")
    expected = {labels / path.relative_to(folder).with_suffix(".txt"): path for path in images}
    texts = [p for p in sorted(labels.rglob("*.txt")) if p.name != "classes.txt"]
    if not any(path.is_file() for path in expected):
        raise DataError(f"{labels} has no text file for any image", hint=_FORMAT)
    if extra := [path for path in texts if path not in expected]:
        raise DataError(
            f"{extra[0].relative_to(root)} has no image in {folder.name}",
            hint="add the image, or remove the text file",
        )
    objects = [
        _objects(text, image, len(names), skip_bad_images) for text, image in expected.items()
    ]
    return ImageDataset(
        name=str(root),
        classes=tuple(names),
        labels=dominant_classes(objects, len(names)),
        source=FileSource(folder, [path.relative_to(folder).as_posix() for path in images]),
        positions=np.arange(len(images), dtype=np.int64),
        skip_bad_images=skip_bad_images,
        objects=tuple(objects),
    )


def _class_names(root: Path) -> list[str]:
    import yaml

    plain, described = root / "classes.txt", root / "data.yaml"
    names: Any = None
    try:
        if described.is_file():
            content = yaml.safe_load(described.read_text(encoding="utf-8"))
            names = content.get("names") if isinstance(content, dict) else None
            if isinstance(names, dict):
                names = [names[key] for key in sorted(names)]
        elif plain.is_file():
            names = [line.strip() for line in plain.read_text(encoding="utf-8").splitlines()]
            names = [name for name in names if name]
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"cannot read the class names of {root}: {error}") from error
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{root} does not name its classes",
            hint="write one name per line into classes.txt, or names: [...] into data.yaml",
        )
    return [str(name) for name in names]


def _objects(text: Path, image: Path, classes: int, skip_bad_images: bool) -> Objects:
    size = image_size_of(image)
    if size is None:
        if skip_bad_images:
            return Objects.of_boxes((1, 1), np.empty((0, 4), np.float32), ())
        raise DataError(
            f"cannot read the image {image}", hint="remove or replace it, or use --skip-bad-images"
        )
    lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
    rows = [_row(line, text, number, classes) for number, line in enumerate(lines) if line.strip()]
    values = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    width, height = size
    boxes = np.concatenate(
        [values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2], 1
    )
    boxes *= (width, height, width, height)
    check_boxes(boxes, size, text.name)
    return Objects.of_boxes(size, boxes.astype(np.float32), [label for label, _ in rows])


def _row(line: str, text: Path, number: int, classes: int) -> tuple[int, Sequence[float]]:
    where = f"line {number + 1} of {text}"
    parts = line.split()
    try:
        label, box = int(parts[0]), [float(part) for part in parts[1:]]
    except (ValueError, IndexError) as error:
        raise DataError(f"{where} is not a box: {line.strip()}", hint=_FORMAT) from error
    if len(box) != 4:
        kind = "a polygon" if len(box) > 4 else "incomplete"
        raise DataError(f"{where} is {kind}: {line.strip()}", hint=_FORMAT)
    if not 0 <= label < classes:
        raise DataError(
            f"{where} has class {label}, but there are {classes} classes, numbered from 0",
            hint="correct the number, or name the class in data.yaml or classes.txt",
        )
    return label, box
