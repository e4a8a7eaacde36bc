"""Calibration on two disjoint halves of the images: how much each tensor's scale differs.

A scale that differs a lot between the halves depends on few images: use more images, or a range
method that is less sensitive to outliers. Ranges are compared before equalization, with the two
methods that ``auto`` interpolates between.

Not handled: the effect of the differences on the output; see `validate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.precision.int8.ranges import distribution, range_of
from optimizer.precision.int8.statistics import Statistics, TensorStatistics

__all__ = ["ScaleDifference", "compare_halves"]


@dataclass(frozen=True)
class ScaleDifference:
    """How much one tensor's scale differs between the halves.

    Attributes:
        tensor: The tensor's name.
        minmax: The larger scale divided by the smaller one, minus one, with min-max ranges.
        mse: The same with ranges of least squared error.
    """

    tensor: str
    minmax: float
    mse: float


def compare_halves(first: Statistics, second: Statistics) -> list[ScaleDifference]:
    """Compare the scales computed from two sets of statistics of one graph.

    Args:
        first: Statistics of one half of the images.
        second: Statistics of the other half.

    Returns:
        All tensors, sorted by ``mse``, the largest difference first.
    """
    moved = [
        ScaleDifference(
            name,
            _relative_difference(tensor, second.tensors[name], "minmax"),
            _relative_difference(tensor, second.tensors[name], "mse"),
        )
        for name, tensor in first.tensors.items()
    ]
    return sorted(moved, key=lambda m: -m.mse)


def _relative_difference(first: TensorStatistics, second: TensorStatistics, method: str) -> float:
    levels = 255 if first.positive else 127
    low, high = sorted(range_of(distribution(t), levels, method) for t in (first, second))
    return high / low - 1.0
