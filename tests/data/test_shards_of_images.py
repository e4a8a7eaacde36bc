"""Shards cover every image once, and only the last one cuts a call short."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.data import shards_of


@pytest.mark.parametrize(
    ("images", "batch", "sizes"),
    [
        (0, 1, []),
        (1, 1, [1]),
        (600, 1, [256, 256, 88]),
        (512, 32, [256, 256]),
        (600, 100, [300, 300]),
        (700, 600, [600, 100]),
    ],
)
def test_sizes(images: int, batch: int, sizes: list[int]) -> None:
    order = np.random.default_rng(0).permutation(images)
    shards = shards_of(order, batch)
    assert [len(shard) for shard in shards] == sizes
    assert np.concatenate([*shards, order[:0]]).tolist() == order.tolist()
