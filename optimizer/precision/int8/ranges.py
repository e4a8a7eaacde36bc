"""Compute tensor ranges from calibration histograms: min-max, entropy and mean squared error.

A *distribution* is the fine-binned histogram of a whole tensor, built from its channels; the methods
choose the largest absolute value that is not clipped (the *range*).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError
from optimizer.precision.int8.statistics import BINS, TensorStatistics

__all__ = ["METHODS", "Distribution", "distribution", "range_of"]

METHODS = ("mse", "minmax", "entropy")
FINE_BINS = 8192


@dataclass(frozen=True)
class Distribution:
    """Histogram of the absolute values of a tensor.

    Attributes:
        largest: The largest absolute value.
        counts: float64[FINE_BINS] over [0, largest].
        zeros: Number of exact zeros (also included in ``counts[0]``).
    """

    largest: float
    counts: NDArray[np.float64]
    zeros: float

    @property
    def centers(self) -> NDArray[np.float64]:
        """Centre of each bin."""
        step = self.largest / len(self.counts)
        return np.asarray((np.arange(len(self.counts)) + 0.5) * step, np.float64)


def distribution(
    tensor: TensorStatistics, factors: NDArray[np.floating] | None = None
) -> Distribution:
    """Merge the channels of a tensor into one histogram of absolute values.

    Args:
        tensor: Statistics of the tensor.
        factors: Positive factors by which the channels are divided (equalization).

    Returns:
        The distribution; the count of each coarse bin is spread evenly over the fine bins it covers.
    """
    channels = len(tensor.exponent)
    divide = np.ones(channels) if factors is None else np.asarray(factors, np.float64)
    largest = float((tensor.absolute_maximum / divide).max(initial=0.0))
    if largest == 0.0:
        counts = np.zeros(FINE_BINS)
        counts[0] = float(tensor.counts.sum())
        return Distribution(0.0, counts, float(tensor.zeros.sum()))
    width = np.ldexp(1.0, tensor.exponent) / divide
    number = np.arange(BINS) - tensor.origin
    low = np.where(number >= 0, number, -number - 1)  # |x| of the bin's inner edge, in bin widths
    inner = low[None, :] * width[:, None]
    outer = inner + width[:, None]
    counts = tensor.counts.astype(np.float64)
    counts[:, tensor.origin] -= tensor.zeros
    occupied = counts > 0
    fine = _spread(inner[occupied], np.minimum(outer[occupied], largest), counts[occupied], largest)
    zeros = float(tensor.zeros.sum())
    fine[0] += zeros
    return Distribution(largest, fine, zeros)


def _spread(
    low: NDArray[np.float64], high: NDArray[np.float64], counts: NDArray[np.float64], largest: float
) -> NDArray[np.float64]:
    """Spread counts evenly over [low, high] into FINE_BINS over [0, largest].

    Adds each interval's density at its two ends and integrates twice, so the cost does not depend
    on how many fine bins an interval covers.
    """
    step = largest / FINE_BINS
    low = np.minimum(low, largest - step)  # the largest value may start a new bin
    a, b = low / step, np.maximum(high, low + 1e-9 * largest) / step
    density = counts / (b - a)
    # cumulative(t) = sum density * (clip(t, a, b) - a); evaluated at the bin edges through ramps.
    ramp = np.zeros(FINE_BINS + 3)
    for position, sign in ((a, 1.0), (b, -1.0)):
        whole = np.clip(np.floor(position).astype(np.int64), 0, FINE_BINS)
        part = position - whole
        np.add.at(ramp, whole + 1, sign * density * (1.0 - part))
        np.add.at(ramp, whole + 2, sign * density * part)
    cumulative = np.cumsum(np.cumsum(ramp))[: FINE_BINS + 1]
    return np.maximum(np.diff(cumulative), 0.0)


def range_of(dist: Distribution, levels: int, method: str) -> float:
    """The largest absolute value that is not clipped.

    Args:
        dist: The distribution.
        levels: Number of positive levels: 255 for u8 or shifted s8, 127 for s8.
        method: One of `METHODS`.

    Returns:
        The range; the scale is range / levels. 1.0 for an all-zero tensor.

    Raises:
        UsageError: Unknown method.
    """
    if dist.largest == 0.0:
        return 1.0
    if method == "minmax":
        return dist.largest
    if method == "mse":
        return _least_squared_error(dist, levels)
    if method == "entropy":
        return _least_divergence(dist, levels)
    raise UsageError(f"unknown range method {method!r}", hint=f"use one of {', '.join(METHODS)}")


def _least_squared_error(dist: Distribution, levels: int) -> float:
    centers = dist.centers
    counts = dist.counts.copy()
    counts[0] -= dist.zeros

    def error(limit: float) -> float:
        scale = limit / levels
        rounded = np.minimum(np.rint(centers / scale), levels) * scale
        return float(np.dot(counts, (centers - rounded) ** 2))

    shares = np.geomspace(0.05, 1.0, 60)
    best = shares[int(np.argmin([error(s * dist.largest) for s in shares]))]
    fine = np.linspace(best * 0.95, min(best * 1.05, 1.0), 21)
    return float(fine[int(np.argmin([error(s * dist.largest) for s in fine]))] * dist.largest)


def _least_divergence(dist: Distribution, levels: int) -> float:
    """Minimize the Kullback-Leibler divergence between the clipped and the quantized histogram.

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017: candidates are prefixes of the
    histogram; outliers are folded into the last bin; within a level the mass is spread over the
    non-empty bins.
    """
    bins = 2048
    reference = dist.counts.copy()
    reference[0] -= dist.zeros
    counts = reference.reshape(bins, -1).sum(axis=1)
    best, best_divergence = bins, np.inf
    for stop in range(max(levels + 1, 128), bins + 1, 8):
        p = counts[:stop].copy()
        p[-1] += counts[stop:].sum()
        level = np.minimum((np.arange(stop) * (levels + 1)) // stop, levels)
        filled = counts[:stop] > 0
        mass = np.bincount(level, weights=counts[:stop], minlength=levels + 1)
        members = np.bincount(level, weights=filled.astype(float), minlength=levels + 1)
        q = np.where(filled, mass[level] / np.maximum(members[level], 1), 0.0)
        total_p, total_q = p.sum(), q.sum()
        if total_p == 0 or total_q == 0:
            continue
        p, q = p / total_p, np.maximum(q / total_q, 1e-12)
        divergence = float(np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0.0)))
        if divergence < best_divergence:
            best, best_divergence = stop, divergence
    return best * dist.largest / bins
