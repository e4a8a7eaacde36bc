"""Deterministic, stratified subsets, and the overlap of two datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import DataError

if TYPE_CHECKING:
    from optimizer.data.dataset import ImageDataset

__all__ = ["shared_images", "stratified_subset"]


def stratified_subset(labels: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose ``count`` images so that each class keeps its share.

    The share of each class is rounded by the method of largest remainders (ties go to the smaller
    label). Within a class the choice is random but fixed by ``seed``; `numpy.random.RandomState`
    is used because its streams are frozen across NumPy versions.

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


def shared_images(reference: ImageDataset, dataset: ImageDataset) -> int:
    """Number of images of ``dataset`` that also occur in ``reference``, compared by content.

    Names are ignored. Only files of equal size are read.
    """
    sizes = [{d.source.size(int(p)) for p in d.positions} for d in (reference, dataset)]
    shared_sizes = sizes[0] & sizes[1]

    def digests(dataset: ImageDataset) -> Iterator[bytes]:
        for position in map(int, dataset.positions):
            if dataset.source.size(position) in shared_sizes:
                yield hashlib.sha256(b"".join(dataset.source.content(position))).digest()

    reference_digests = set(digests(reference))
    return sum(digest in reference_digests for digest in digests(dataset))
