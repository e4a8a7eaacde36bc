"""2:4 structured sparsity, the pattern that TensorRT's sparse kernels take.

For each output channel and each position of the kernel, at least two of every four consecutive input
channels are zero. The number of input channels must be divisible by four, so the first convolution of
a network that reads RGB has no such pattern.

Sources: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (pattern, pruning by
magnitude); NVIDIA TensorRT, Developer Guide, "Sparsity".
Not handled: grouped convolutions, and permutations of input channels that would keep larger weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUP", "KEPT", "can_be_sparse", "has_pattern", "magnitude_mask"]

GROUP = 4
"""Consecutive input channels."""
KEPT = 2
"""Most non-zero weights of a group."""


def can_be_sparse(shape: tuple[int, ...], groups: int = 1) -> bool:
    """Whether a layer's weight (O x I x … or O x I) can have the pattern."""
    return groups == 1 and len(shape) >= 2 and shape[1] >= GROUP and shape[1] % GROUP == 0


def magnitude_mask(weight: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The weights to keep: the two largest of each group by absolute value.

    Args:
        weight: O x I x … with I divisible by four. Of equal values, the first are kept.

    Returns:
        bool in the shape of ``weight``; exactly half is true.
    """
    grouped = _grouped(np.abs(weight))
    order = np.argsort(-grouped, axis=2, kind="stable")
    mask = np.zeros(grouped.shape, bool)
    np.put_along_axis(mask, order[:, :, :KEPT], True, axis=2)
    return mask.reshape(weight.shape)


def has_pattern(weight: NDArray) -> bool:
    """Whether a weight (O x I x …, of any dtype) has the pattern; false for one of only zeros."""
    if not can_be_sparse(weight.shape) or not weight.any():
        return False
    return bool(((_grouped(weight) != 0).sum(axis=2) <= KEPT).all())


def _grouped(weight: NDArray) -> NDArray:
    """O x I/4 x 4 x …."""
    outputs, inputs, *rest = weight.shape
    return weight.reshape(outputs, inputs // GROUP, GROUP, *rest)
