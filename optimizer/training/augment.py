"""Augmentation on batches: small shifts, and mirror images where they keep their meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes to preprocessed images.

    Attributes:
        shift: Largest shift in each direction, pixels; the border is repeated.
        flip: Whether half of the images are mirrored.
    """

    shift: int
    flip: bool

    def apply(
        self, images: NDArray[np.float32], random: np.random.RandomState
    ) -> NDArray[np.float32]:
        """Change each image of a batch by itself.

        Args:
            images: N x 3 x H x W float32.
            random: Source of randomness; two draws of N, or three with ``flip``.

        Returns:
            A new array of the same shape.
        """
        count, _, height, width = images.shape
        border = ((0, 0), (0, 0), (self.shift, self.shift), (self.shift, self.shift))
        padded = np.pad(images, border, mode="edge")
        tops, lefts = random.randint(0, 2 * self.shift + 1, size=(2, count))
        changed = np.empty_like(images)
        for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            changed[i] = padded[i, :, top : top + height, left : left + width]
        if self.flip:
            mirrored = random.rand(count) < 0.5
            changed[mirrored] = changed[mirrored][..., ::-1]
        return changed
