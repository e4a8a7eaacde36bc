"""Shards: images that are computed, stored, shared out and resumed together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHARD", "shards_of"]

SHARD = 256
"""Images of a shard: few enough to lose at a kill, many enough for one file each."""


def shards_of(indices: NDArray[np.int64], batch: int = 1) -> list[NDArray[np.int64]]:
    """Consecutive images in shards of about `SHARD`.

    Args:
        indices: Positions of the images in their dataset.
        batch: Images per call; all shards but the last have a multiple of it.
    """
    size = batch * max(1, round(SHARD / batch))
    return [indices[start : start + size] for start in range(0, len(indices), size)]
