"""Divides the images of a validation into shards, the units that are stored, shared and resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Dataset, shards_of, stratified_subset
from optimizer.options import HopOptions

__all__ = ["Shard", "plan_shards"]

_LEAST_SAMPLE = 1000
_SAMPLE = 4.0
"""Size of the sample, in multiples of the images on which an engine without flips passes."""


@dataclass(frozen=True)
class Shard:
    """Images that are computed and stored together.

    Attributes:
        indices: Positions in the dataset, in the order in which they are read.
        sampled: Whether the hops between the ends are computed on it from the beginning.
    """

    indices: NDArray[np.int64]
    sampled: bool


def plan_shards(dataset: Dataset, options: HopOptions, max_drop_pp: float) -> list[Shard]:
    """Shards of all images: first those of the sample, then the others.

    The sample is stratified and in the order of the dataset, or, where the images are looked at only
    until the verdict is decided, the beginning of their random order.

    Args:
        dataset: The images.
        options: Images per call, which hops see all images, and the order.
        max_drop_pp: The limit that the sample must be large enough for, percentage points.
    """
    count = len(dataset)
    sample = {"all": count, "ends": 0, "sample": _sample_size(count, max_drop_pp)}[options.hops]
    if options.until_decided:
        order = np.random.default_rng(options.seed).permutation(count)
        parts = order[:sample], order[sample:]
    else:
        chosen = stratified_subset(dataset.labels, sample, options.seed) if sample else np.arange(0)
        parts = chosen, np.setdiff1d(np.arange(count), chosen)
    return [
        Shard(shard, sampled)
        for part, sampled in zip(parts, (True, False), strict=True)
        for shard in shards_of(part.astype(np.int64), options.batch)
    ]


def _sample_size(count: int, max_drop_pp: float) -> int:
    if max_drop_pp == 0:
        return count
    # Without flips the upper bound of n images is z^2 / n, with z = 1.96 for 95 %.
    needed = math.ceil(_SAMPLE * 1.96**2 / (max_drop_pp / 100))
    return min(count, max(needed, _LEAST_SAMPLE))
