"""Augmentation of preprocessed batches: small shifts and horizontal flips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of preprocessed images.

    Attributes:
        shift: Largest shift in each direction, pixels; edge pixels are repeated.
        flip: Whether to flip half of the images horizontally.
    """

    shift: int
    flip: bool

    def apply(self, images: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Augment each image of a batch independently.

        Args:
            images: N x channels x H x W float32.
            numbers: N random numbers from 0, much larger than the number of shifts; an image's
                change follows from its number.

        Returns:
            A new array of the same shape.
        """
        height, width = images.shape[2:]
        border = ((0, 0), (0, 0), (self.shift, self.shift), (self.shift, self.shift))
        padded = np.pad(images, border, mode="edge")
        places = 2 * self.shift + 1
        rest, tops = np.divmod(numbers, places)
        rest, lefts = np.divmod(rest, places)
        augmented = np.empty_like(images)
        for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            augmented[i] = padded[i, :, top : top + height, left : left + width]
        if self.flip:
            flipped = rest % 2 == 1
            augmented[flipped] = augmented[flipped][..., ::-1]
        return augmented
