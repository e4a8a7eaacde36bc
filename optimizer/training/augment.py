"""Batch augmentation: small shifts and horizontal flips."""

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

    def apply(
        self, images: NDArray[np.float32], random: np.random.RandomState
    ) -> NDArray[np.float32]:
        """Augment each image of a batch independently.

        Args:
            images: N x 3 x H x W float32.
            random: Random generator; two draws of N numbers, or three with ``flip``.

        Returns:
            A new array of the same shape.
        """
        count, _, height, width = images.shape
        border = ((0, 0), (0, 0), (self.shift, self.shift), (self.shift, self.shift))
        padded = np.pad(images, border, mode="edge")
        tops, lefts = random.randint(0, 2 * self.shift + 1, size=(2, count))
        augmented = np.empty_like(images)
        for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            augmented[i] = padded[i, :, top : top + height, left : left + width]
        if self.flip:
            flipped = random.rand(count) < 0.5
            augmented[flipped] = augmented[flipped][..., ::-1]
        return augmented
