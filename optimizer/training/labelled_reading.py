"""How labelled images of a classifier's training are augmented and become batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Batch, ImageDataset, Preprocessing
from optimizer.data.decoding import Operation
from optimizer.errors import DataError, UsageError
from optimizer.options import TrainOptions
from optimizer.training.augment import Augmentation
from optimizer.training.sources import is_digits

__all__ = ["LabelledReading"]

_RANDOMIZED = "optimizer.training.image_augmentation:randomized"


class LabelledReading:
    """See `optimizer.training.training_images.Reading`.

    Raises:
        UsageError: Random erasing without random crops.
        DataError: Preprocessed images would have to be cropped.
    """

    def __init__(
        self, data: ImageDataset, preprocessing: Preprocessing, settings: TrainOptions
    ) -> None:
        self._labels, self._preprocessing = data.labels, preprocessing
        self._shift = _shift_of(data, preprocessing, settings)
        self.operation = _operation_of(data, settings)

    def batch(
        self, images: NDArray[Any], indices: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> Batch:
        """A batch of augmented images, normalized."""
        if images.dtype == np.uint8:
            images = self._preprocessing.normalize(images)
        if self._shift is not None:
            images = self._shift.apply(images, numbers)
        return Batch(images, self._labels[indices], indices)


def _shift_of(
    data: ImageDataset, preprocessing: Preprocessing, settings: TrainOptions
) -> Augmentation | None:
    if settings.augment != "shift":
        return None
    size = preprocessing.image_size
    # Digits are not symmetric, so they are not flipped; their original images are only 8 pixels
    # wide, so they are shifted less.
    if is_digits(data.name):
        return Augmentation(shift=max(1, size // 32), flip=False)
    return Augmentation(shift=max(1, size // 8), flip=True)


def _operation_of(data: ImageDataset, settings: TrainOptions) -> Operation | None:
    """The random change of each image; ``None`` if the preprocessing is applied as it is."""
    if settings.augment in ("shift", "none"):
        if settings.random_erasing:
            raise UsageError(
                f"--random-erasing needs random crops, but --augment is {settings.augment}",
                hint="--augment crop",
            )
        return None
    if data.preprocessed:
        raise DataError(
            f"{data.name} holds preprocessed images, which cannot be cropped at random",
            hint="--augment shift or none, or store the images as N x H x W x 3 uint8",
        )
    values = {
        "augment": settings.augment,
        "flip": not is_digits(data.name),
        "erasing": settings.random_erasing or 0.0,
    }
    return Operation(_RANDOMIZED, values)
