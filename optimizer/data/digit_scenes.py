"""Bundled data for detection: handwritten digits on parts of two photographs.

scikit-learn's digits are pasted at random places and sizes on crops of its two photographs, so that
pixels are real and nothing is downloaded. Digits of the test images are those of ``digits:test``, and
the photographs are cut in two: training images show the left part, test images the right. All is
fixed by a seed. Digits are white ink on the photograph, darkened, as a transparency would be; their
boxes are those of the ink.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimizer.data.dataset import ImageDataset
from optimizer.data.digits import open_digits
from optimizer.data.objects import Objects, dominant_classes
from optimizer.data.pixels import PixelSource
from optimizer.data.preprocessing import Preprocessing
from optimizer.errors import DataError

__all__ = ["SCENE_SPLITS", "is_scenes", "open_scenes"]

SCENE_SPLITS = ("digits-scenes:train", "digits-scenes:test")
_COUNTS = {"train": 1800, "test": 300}
_SIDE = 128
_MOST_DIGITS = 4
_SMALLEST, _LARGEST = 20, 64
"""Sides of a pasted digit, pixels."""
_LARGEST_OVERLAP = 0.1
"""Digits that would cover more of each other (IoU) are placed again."""
_LEFT_PART = 0.55
"""Share of a photograph's width that training images show."""
_DARKENING = 0.45
_INK = 40
"""Smallest gray value of a digit that counts as ink."""
_TRIES = 20


def is_scenes(name: str) -> bool:
    """Whether a name means this data."""
    return name == "digits-scenes" or name.startswith("digits-scenes:")


def open_scenes(name: str) -> ImageDataset:
    """Draw the images of one split.

    Args:
        name: One of `SCENE_SPLITS`.

    Raises:
        DataError: There is no such split.
    """
    if name not in SCENE_SPLITS:
        raise DataError(
            f"{name!r} is not a split of digits-scenes", hint=f"use {' or '.join(SCENE_SPLITS)}"
        )
    split = name.partition(":")[2]
    digits = open_digits(f"digits:{split}")
    plain = Preprocessing(resize=None, crop=8)
    (batch,) = digits.batches(len(digits), plain, as_uint8=True)
    photos = _photos(split)
    random = np.random.RandomState({"train": 1, "test": 2}[split])  # frozen across NumPy versions
    count = _COUNTS[split]
    images = np.empty((count, _SIDE, _SIDE, 3), np.uint8)
    objects = []
    for index in range(count):
        canvas = _background(photos, random)
        objects.append(_paste(canvas, batch.images[..., 0], batch.labels, random))
        images[index] = np.rint(canvas).astype(np.uint8)
    return ImageDataset(
        name=name,
        classes=digits.classes,
        labels=dominant_classes(objects, len(digits.classes or ())),
        source=PixelSource(images, f"digits-scenes-{split}"),
        positions=np.arange(count, dtype=np.int64),
        objects=tuple(objects),
    )


def _photos(split: str) -> list[NDArray[np.uint8]]:
    from sklearn.datasets import load_sample_image

    parts = []
    for name in ("china.jpg", "flower.jpg"):
        photo = load_sample_image(name)
        border = int(photo.shape[1] * _LEFT_PART)
        parts.append(photo[:, :border] if split == "train" else photo[:, border:])
    return parts


def _background(
    photos: list[NDArray[np.uint8]], random: np.random.RandomState
) -> NDArray[np.float64]:
    photo = photos[random.randint(len(photos))]
    top, left = (random.randint(side - _SIDE + 1) for side in photo.shape[:2])
    crop = photo[top : top + _SIDE, left : left + _SIDE].astype(np.float64)
    return crop[:, ::-1] * _DARKENING if random.randint(2) else crop * _DARKENING


def _paste(
    canvas: NDArray[np.float64],
    digits: NDArray[np.uint8],
    labels: NDArray[np.int64],
    random: np.random.RandomState,
) -> Objects:
    """Paste up to four digits; one image in twenty has none."""
    from PIL import Image

    count = 0 if random.randint(20) == 0 else random.randint(1, _MOST_DIGITS + 1)
    boxes: list[NDArray[np.float64]] = []
    classes: list[int] = []
    for _ in range(count):
        chosen = random.randint(len(digits))
        for _ in range(_TRIES):
            side = random.randint(_SMALLEST, _LARGEST + 1)
            left, top = (random.randint(_SIDE - side + 1) for _ in range(2))
            pixels = Image.fromarray(digits[chosen]).resize((side, side), Image.Resampling.BICUBIC)
            ink = np.asarray(pixels, np.float64)
            rows, columns = (np.flatnonzero((ink > _INK).any(axis=axis)) for axis in (1, 0))
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
            box += (left, top, left, top)
            if all(_iou(box, other) <= _LARGEST_OVERLAP for other in boxes):
                opacity = (ink / 255)[..., None]
                region = canvas[top : top + side, left : left + side]
                region[...] = region * (1 - opacity) + 255 * opacity
                boxes.append(box)
                classes.append(int(labels[chosen]))
                break
    found = np.array(boxes, np.float32).reshape(-1, 4)
    return Objects.of_boxes((_SIDE, _SIDE), found, classes)


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    overlap = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
    return float(overlap / union)
