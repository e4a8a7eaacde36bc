"""Calibration on two disjoint halves of the images: how far each tensor's scale moves.

A scale that moves much between halves rests on few images: more of them, or a method that does not
follow single values, would serve better. Ranges are compared before equalization, by the two methods
between which the default one chooses.

Not handled: what the moved scales cost at the output; `validate` tells that.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.precision.int8.ranges import distribution, range_of
from optimizer.precision.int8.statistics import Statistics, TensorStatistics

__all__ = ["Moved", "compare_halves"]


@dataclass(frozen=True)
class Moved:
    """How far one tensor's scale moves between the halves.

    Attributes:
        tensor: The tensor's name.
        minmax: The larger scale over the smaller one, minus one, by the largest value seen.
        mse: The same by the least squared error.
    """

    tensor: str
    minmax: float
    mse: float


def compare_halves(first: Statistics, second: Statistics) -> list[Moved]:
    """Compare the scales that two sets of statistics of one graph give.

    Args:
        first: Statistics of one half of the images.
        second: Statistics of the other half.

    Returns:
        Every tensor, the one whose scale moves most (by squared error) first.
    """
    moved = [
        Moved(
            name,
            _moved(tensor, second.tensors[name], "minmax"),
            _moved(tensor, second.tensors[name], "mse"),
        )
        for name, tensor in first.tensors.items()
    ]
    return sorted(moved, key=lambda m: -m.mse)


def _moved(first: TensorStatistics, second: TensorStatistics, method: str) -> float:
    levels = 255 if first.positive else 127
    low, high = sorted(range_of(distribution(t), levels, method) for t in (first, second))
    return high / low - 1.0
