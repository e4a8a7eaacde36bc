"""Labels as output indices: whole numbers from 0, small enough for a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import DataError

__all__ = ["MOST_CLASSES", "as_labels"]

MOST_CLASSES = 1_000_000
"""More than any classifier has; a larger label is a damaged file or another column."""


def as_labels(
    values: NDArray[Any] | Sequence[int],
    source: str,
    classes: int | None = None,
    *,
    first: int = 0,
) -> NDArray[np.int64]:
    """The labels as N int64.

    Args:
        values: N whole numbers of any integer type.
        source: Name of the file, for messages.
        classes: Number of classes, if it is known.
        first: Label of the first class.

    Raises:
        DataError: A label is negative, has no class, or is too large for any classifier.
    """
    limit = MOST_CLASSES if classes is None else classes
    # Compared as Python numbers, because 2^64 - 1 becomes -1 in int64.
    wrong = next((i for i in _extremes(values) if not 0 <= int(values[i]) - first < limit), None)
    if wrong is not None:
        allowed = (
            f"start at {first}" if classes is None else f"must be {first} to {limit - 1 + first}"
        )
        low, high = (int(values[i]) for i in _extremes(values))
        if first == 0 and low == 1 and high == classes:
            allowed += "; if the first class has label 1: --labels-from 1"
        raise DataError(
            f"{source}: label {str(values[wrong])[:40]} of image {wrong} is out of range",
            hint=f"labels {allowed}",
        )
    return np.asarray(values, dtype=np.int64) - first


def _extremes(values: NDArray[Any] | Sequence[int]) -> list[int]:
    """Positions of the smallest and the largest value."""
    if not len(values):
        return []
    if isinstance(values, np.ndarray):
        return [int(values.argmin()), int(values.argmax())]
    return [
        min(range(len(values)), key=values.__getitem__),
        max(range(len(values)), key=values.__getitem__),
    ]
