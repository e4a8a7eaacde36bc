"""The order of the images: a function of seed and epoch alone.

It depends neither on the number of processes nor on where a training was interrupted, so a resumed
training and one with more processes see the same images in the same global batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["draws", "epoch_order", "share"]

_ORDER, _AUGMENTATION = 0, 1


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of ``count`` images.

    Args:
        seed: Seed of the training.
        epoch: Number of the epoch, from 0.
        count: Number of images.
    """
    return _generator(seed, epoch, _ORDER).permutation(count).astype(np.int64)


def draws(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A random number below 2**62 for each image, from which its augmentation follows."""
    return _generator(seed, epoch, _AUGMENTATION).integers(2**62, size=count, dtype=np.int64)


def share(
    order: NDArray[np.int64], step: int, total: int, rank: int, size: int
) -> NDArray[np.int64]:
    """The images of one process in one step: every ``size``-th of the global batch.

    Args:
        order: The order of the epoch.
        step: Number of the step in the epoch, from 0.
        total: Images per step in all processes; a multiple of ``size``.
        rank: Number of the process.
        size: Number of processes.
    """
    return order[step * total : (step + 1) * total][rank::size]


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, purpose])))
