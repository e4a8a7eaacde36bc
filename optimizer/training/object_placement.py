"""Images of a detector's training, scaled and moved a little together with their boxes.

Nothing is mirrored, because digits and letters have a direction. An image's placement follows from
one number, so it is the same in any process and after any interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset, Preprocessing
from optimizer.data.decoding import Operation

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ObjectBatch", "PlacedReading", "Placement", "placed"]

_MAX_SHIFT = 0.1
_SCALES = (0.8, 1.2)
_BRIGHTNESS = (0.8, 1.2)
_PLACED = "optimizer.training.object_placement:placed"


@dataclass(frozen=True)
class ObjectBatch:
    """Images with objects.

    Attributes:
        images: N x 3 x H x W float32, normalized.
        boxes: Of each image M x 4 float32: left, top, right, bottom in pixels of the input.
        labels: Of each image M int64.
        indices: N int64, positions in the dataset.
    """

    images: NDArray[np.float32]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """Where an image is put on the network's input.

    Attributes:
        scale: Output pixels per pixel of the fitted image.
        x: Shift to the right, output pixels.
        y: Shift downwards, output pixels.
        brightness: Factor of the pixels.
    """

    scale: float = 1.0
    x: float = 0.0
    y: float = 0.0
    brightness: float = 1.0

    @classmethod
    def of(cls, number: int, size: int) -> Placement:
        """The placement that follows from a number, on an input of ``size`` pixels."""
        random = np.random.Generator(np.random.Philox(number))
        scale = random.uniform(*_SCALES)
        x, y = random.uniform(-_MAX_SHIFT, _MAX_SHIFT, 2) * size + (1 - scale) * size / 2
        return cls(float(scale), float(x), float(y), float(random.uniform(*_BRIGHTNESS)))


def placed(
    preprocessing: Preprocessing, _: Mapping[str, Any]
) -> Callable[[Image.Image, int], NDArray[np.uint8]]:
    """A function that fits an image into the input and places it by its second argument.

    Args:
        preprocessing: Preprocessing of the network, a letterbox.
        _: There are no settings.

    Returns:
        A function of an image and a number; it returns size x size x 3 uint8.
    """
    size = preprocessing.image_size
    filling = tuple(round(255 * value) for value in preprocessing.mean)

    def apply(image: Image.Image, number: int) -> NDArray[np.uint8]:
        from PIL import Image

        placement = Placement.of(number, size)
        inverse = 1 / placement.scale
        matrix = (inverse, 0, -placement.x * inverse, 0, inverse, -placement.y * inverse)
        moved = Image.fromarray(preprocessing.apply_uint8(image)).transform(
            (size, size),
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.BILINEAR,
            fillcolor=filling,
        )
        pixels = np.asarray(moved, np.float32) * np.float32(placement.brightness)
        bright: NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
        return bright

    return apply


class PlacedReading:
    """How images and boxes become batches; see `optimizer.training.training_images.Reading`.

    Args:
        data: Images with objects.
        preprocessing: Preprocessing of the network, a letterbox.
        moving: Whether images are scaled and moved at random.
    """

    def __init__(self, data: ImageDataset, preprocessing: Preprocessing, *, moving: bool) -> None:
        self._data, self._preprocessing, self._moving = data, preprocessing, moving
        self.operation = Operation(_PLACED, {}) if moving else None

    def batch(
        self, images: NDArray[Any], indices: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> ObjectBatch:
        """A batch of placed images (uint8), or of normalized ones (float32)."""
        if images.dtype == np.uint8:
            images = self._preprocessing.normalize(images)
        pairs = zip(indices.tolist(), numbers.tolist(), strict=True)
        boxes, labels = zip(*(self._target(*pair) for pair in pairs), strict=True)
        return ObjectBatch(images, list(boxes), list(labels), indices)

    def _target(self, index: int, number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes that are visible by half or more, clipped to the input, and their labels."""
        assert self._data.objects is not None
        objects, size = self._data.objects[index], self._preprocessing.image_size
        placement = Placement.of(number, size) if self._moving else Placement()
        width, height = objects.size
        fitted = self._preprocessing.fitted_size(width, height)
        scale = np.array([fitted[0] / width, fitted[1] / height] * 2) * placement.scale
        boxes = objects.boxes * scale + np.array([placement.x, placement.y] * 2)
        clipped = boxes.clip(0, size)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        inside = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)
        keep = (inside > 0.5 * area) & (inside > 1) & ~objects.crowd
        return clipped[keep].astype(np.float32), objects.classes[keep]
