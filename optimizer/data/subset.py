"""Deterministic, stratified subsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import DataError

__all__ = ["stratified_subset"]


def stratified_subset(labels: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose ``count`` images so that each class keeps its share.

    The share of each class is rounded by the method of largest remainders (ties go to the smaller
    label). Within a class the choice is random but fixed by ``seed``; `numpy.random.RandomState`
    is used because its streams never change between NumPy versions.

    Args:
        labels: Label of each image, shape (N,).
        count: Images to choose; N or more chooses all.
        seed: Seed of the choice.

    Returns:
        Indices in ascending order, int64.

    Raises:
        DataError: ``count`` is less than 1.
    """
    if count < 1:
        raise DataError(f"a subset needs at least one image, not {count}")
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    present, sizes = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(sizes * count, len(labels))
    by_remainder = np.argsort(-remainders, kind="stable")
    quotas[by_remainder[: count - int(quotas.sum())]] += 1
    random = np.random.RandomState(seed)
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(present, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
