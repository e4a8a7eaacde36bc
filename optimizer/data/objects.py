"""Objects in an image: the labels of detection."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import DataError

__all__ = ["Objects", "check_boxes", "dominant_classes"]


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The labelled objects of one image.

    Attributes:
        size: Width and height of the image, pixels.
        boxes: M x 4 float32: left, top, right, bottom in pixels of the image.
        classes: M int64, indices of the dataset's classes.
        areas: M float32, pixels; COCO's are those of the segmentation, else of the box.
        crowd: M bool: a group of objects, where detections are neither right nor wrong.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    areas: NDArray[np.float32]
    crowd: NDArray[np.bool_]

    @classmethod
    def of_boxes(
        cls,
        size: tuple[int, int],
        boxes: NDArray[np.float32],
        classes: Sequence[int] | NDArray[np.int64],
    ) -> Objects:
        """Objects without segmentation: none is a crowd, and areas are those of the boxes."""
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        return cls(
            size=size,
            boxes=boxes,
            classes=np.asarray(classes, np.int64).reshape(-1),
            areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            crowd=np.zeros(len(boxes), np.bool_),
        )

    def relabel(self, mapping: NDArray[np.int64]) -> Objects:
        """The same objects with class ``mapping[c]`` for class ``c``."""
        return Objects(
            size=self.size,
            boxes=self.boxes,
            classes=mapping[self.classes],
            areas=self.areas,
            crowd=self.crowd,
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 over all fields."""
        hasher = hashlib.sha256(repr(self.size).encode())
        for values in (self.boxes, self.classes, self.areas, self.crowd):
            hasher.update(np.ascontiguousarray(values).tobytes())
        return hasher.digest()


def check_boxes(boxes: NDArray[np.float64], size: tuple[int, int], where: str) -> None:
    """Refuse boxes that no object can have.

    Args:
        boxes: M x 4: left, top, right, bottom in pixels.
        size: Width and height of the image.
        where: The file and the image, for the message.

    Raises:
        DataError: A box is not finite, has no area, or lies outside the image by more than a pixel.
    """
    width, height = size
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        text = f"box {number + 1} of {where} ({left:g}, {top:g}) to ({right:g}, {bottom:g})"
        if not np.isfinite(boxes[number]).all():
            raise DataError(f"{text} is not a number", hint="correct or remove the annotation")
        if right <= left or bottom <= top:
            raise DataError(f"{text} has no area", hint="correct or remove the annotation")
        if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
            raise DataError(
                f"{text} lies outside the image of {width} x {height} pixels",
                hint="correct or remove the annotation; boxes are in pixels of the stored image",
            )


def dominant_classes(objects: Sequence[Objects], none: int) -> NDArray[np.int64]:
    """The class that covers the largest area of each image, by which subsets are stratified.

    Args:
        objects: One entry per image.
        none: Label of images without objects.
    """
    labels = np.full(len(objects), none, np.int64)
    for index, found in enumerate(objects):
        if len(found.classes):
            covered = np.bincount(found.classes, weights=found.areas)
            labels[index] = int(covered.argmax())
    return labels
