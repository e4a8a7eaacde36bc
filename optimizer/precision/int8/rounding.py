"""Round weights to integers that the target's kernels multiply exactly.

x86 CPUs without VNNI multiply unsigned activations by signed weights and add two neighbouring
products in a saturating 16-bit accumulator (VPMADDUBSW). With 8-bit weights the sum saturates
whenever 255 * (w1 + w2) does not fit, and the result is silently wrong. The usual remedy is 7-bit
weights everywhere. Here only pairs that can saturate are limited: two neighbours of the same sign
keep |w1| + |w2| <= 128 (255 * 128 = 32,640), by the nearest pair of integers that does. Neighbours of
opposite signs cannot saturate, and most pairs are far below the limit.

The neighbours were determined by probing every pair of inputs of single layers with the largest
values (repeated by `tests/targets/test_saturation.py`): OpenVINO pairs the input channels 2i and
2i + 1 at the same position of the kernel (``channels``); ONNX Runtime pairs the elements 2j and
2j + 1 of the kernel in the order height, width, channel (``matrix``), which is the same unless the
number of channels is odd. Signed activations are multiplied with 128 added, so the same limit
applies to them.

Not handled: grouped convolutions, whose layout was not probed; they get 7-bit weights.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.targets.rules import PairLayout, TargetRules

__all__ = [
    "PAIR_LIMIT", "WeightGrid", "nearest", "pair_sums", "scales_of", "unsafe_channels",
]  # fmt: skip

PAIR_LIMIT = 128
_SEVEN_BITS = 64
_MIN_SHARE = 0.6
"""Smallest scale in the search, as a fraction of the smallest scale that does not clip."""
_COARSE_STEP = 1.07
_FINE_POWERS = (-0.5, -0.25, 0.25, 0.5)
_CHUNK_VALUES = 1 << 16
"""Values rounded at a time, to stay in the CPU cache."""


@dataclass(frozen=True)
class WeightGrid:
    """The allowed integers for a layer's weights.

    Attributes:
        largest: Largest absolute value.
        pairs: Which neighbours are limited to a sum of `PAIR_LIMIT`.
    """

    largest: int = 127
    pairs: PairLayout = "free"

    @classmethod
    def of(cls, rules: TargetRules, groups: int) -> WeightGrid:
        """The grid of a layer with this many groups under a target's rules."""
        if rules.pairs != "free" and groups != 1:
            return cls(min(rules.weight_max, _SEVEN_BITS))
        return cls(rules.weight_max, rules.pairs)


def nearest(scaled: NDArray[np.float32], grid: WeightGrid) -> NDArray[np.float32]:
    """Round to the nearest allowed integers.

    Args:
        scaled: O x I x … weights divided by their scales.
        grid: The allowed integers.

    Returns:
        Integers as float32, in the same shape.
    """
    integers = np.rint(scaled)
    np.clip(integers, -grid.largest, grid.largest, out=integers)
    if grid.pairs == "free":
        return integers
    ordered, exact = _ordered(integers, grid.pairs), _ordered(scaled, grid.pairs)
    first, second = _neighbours(ordered)
    over = np.abs(first + second) > PAIR_LIMIT  # implies the same sign, since none exceeds 127
    if over.any():
        exact_first, exact_second = (part[over] for part in _neighbours(exact))
        first[over], second[over] = _limited(exact_first, exact_second, grid.largest)
    return _restored(ordered, integers, grid.pairs)


def _limited(
    first: NDArray[np.float32], second: NDArray[np.float32], largest: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The nearest integers whose sum is the limit, for neighbours of the same sign."""
    share = np.clip(np.rint((PAIR_LIMIT + np.abs(first) - np.abs(second)) / 2), 1, largest)
    sign = np.sign(first)
    return sign * share, sign * (PAIR_LIMIT - share)


def _neighbours(ordered: NDArray) -> tuple[NDArray, NDArray]:
    """Views of the first and the second of each pair; an unpaired last element is left out."""
    even = ordered.shape[1] // 2 * 2
    return ordered[:, 0:even:2], ordered[:, 1:even:2]


def pair_sums(weights: NDArray, grid: WeightGrid) -> NDArray:
    """|w1 + w2| of all neighbours of the same sign; the larger of the two where signs differ.

    Args:
        weights: O x I x … integers or floats.
        grid: Defines the neighbours.
    """
    wide = np.int32 if weights.dtype.kind == "i" else weights.dtype
    first, second = _neighbours(_ordered(weights.astype(wide), grid.pairs))
    larger = np.maximum(np.abs(first), np.abs(second))
    return np.asarray(np.where(first * second > 0, np.abs(first + second), larger))


def unsafe_channels(integers: NDArray[np.int8], grid: WeightGrid) -> NDArray[np.bool_]:
    """Output channels with weights for which the CPU's kernels could saturate: bool[O].

    Args:
        integers: O x I x … weights.
        grid: The allowed integers.
    """
    wide = integers.astype(np.int32)
    unsafe = np.zeros(len(wide), bool)
    if grid.pairs != "free":
        unsafe |= pair_sums(wide, grid).reshape(len(wide), -1).max(axis=1, initial=0) > PAIR_LIMIT
    if grid.largest < 127:
        unsafe |= np.abs(wide).reshape(len(wide), -1).max(axis=1, initial=0) > grid.largest
    return unsafe


def _ordered(array: NDArray, pairs: PairLayout) -> NDArray:
    """Reorder so that neighbours are at 2i and 2i + 1 of the second axis; a view if they are already."""
    if pairs == "channels" or array.ndim == 2 or array.shape[1] % 2 == 0:
        return array
    return np.moveaxis(array, 1, -1).reshape(len(array), -1)


def _restored(ordered: NDArray, like: NDArray, pairs: PairLayout) -> NDArray:
    if ordered.shape == like.shape:
        return ordered
    assert pairs == "matrix"
    spatial = like.shape[2:]
    return np.ascontiguousarray(
        np.moveaxis(ordered.reshape(len(like), *spatial, like.shape[1]), -1, 1)
    )


_ZERO_WEIGHT_SCALE = 2.0**-24
"""Scale of a layer with all-zero weights: the smallest positive FP16 value."""


def scales_of(weight: NDArray[np.float32], grid: WeightGrid, method: str) -> NDArray[np.float32]:
    """Compute one scale per output channel.

    Args:
        weight: O x I x … float32.
        grid: The allowed integers; errors from its limits are part of the squared error.
        method: ``minmax`` for the smallest scale that does not clip; anything else for the least
            squared error.

    Returns:
        float32[O]. An all-zero channel gets the smallest of the other scales, or a tiny one if all
        are zero: engines that add biases in units of the products round its bias to this scale.
    """
    limit = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    smallest = limit.min(initial=np.inf, where=limit > 0)
    fallback = smallest if np.isfinite(smallest) else grid.largest * _ZERO_WEIGHT_SCALE
    limit = np.where(limit == 0, fallback, limit).astype(np.float32)
    full = np.asarray(limit / np.float32(grid.largest), np.float32)
    if method == "minmax":
        return full if grid.pairs == "free" else np.maximum(full, _unclipped(weight, grid))
    # Start at the scale of 7-bit weights, where no pair can exceed the limit.
    widest = 1.0 if grid.pairs == "free" else grid.largest / _SEVEN_BITS
    count = 1 + round(np.log(widest / _MIN_SHARE) / np.log(_COARSE_STEP))
    shares = np.geomspace(widest, _MIN_SHARE, count, dtype=np.float32)
    rows = max(1, _CHUNK_VALUES // max(weight[0].size, 1))
    parts = [slice(start, start + rows) for start in range(0, len(weight), rows)]
    # NumPy releases the GIL while it computes.
    with ThreadPoolExecutor() as pool:
        best = pool.map(lambda p: _least_squared(weight[p], full[p], shares, grid), parts)
        return np.concatenate(list(best))


def _unclipped(weight: NDArray[np.float32], grid: WeightGrid) -> NDArray[np.float32]:
    """The scale at which the largest pair sum of a channel stays within the limit after rounding."""
    sums = pair_sums(weight, grid)
    largest = sums.reshape(len(weight), -1).max(axis=1, initial=0.0)
    return np.asarray(largest / (PAIR_LIMIT - 1), np.float32)


def _least_squared(
    weight: NDArray[np.float32],
    full: NDArray[np.float32],
    shares: NDArray[np.float32],
    grid: WeightGrid,
) -> NDArray[np.float32]:
    """Search from coarse to fine: the error has one wide minimum, with negligible ripples."""
    pairs = _limited_pairs(weight, float(shares.min()) * full, grid)
    best, least = full.copy(), np.full(len(full), np.inf)

    def attempt(scale: NDArray[np.float32]) -> None:
        column = scale.reshape(-1, *([1] * (weight.ndim - 1)))
        error = weight / column
        _round(error, pairs, grid)
        error *= column
        error -= weight
        squares = np.square(error).reshape(len(weight), -1).sum(axis=1)
        better = squares < least
        best[better], least[better] = scale[better], squares[better]

    for share in shares:
        attempt(share * full)
    around = best.copy()
    for power in _FINE_POWERS:
        attempt(np.maximum(around * np.float32(_COARSE_STEP**power), shares[-1] * full))
    return best


def _limited_pairs(
    weight: NDArray[np.float32], least: NDArray[np.float32], grid: WeightGrid
) -> NDArray[np.intp]:
    """Flat indices of neighbours that can exceed the limit at any scale in the search.

    There are few, so a search over many scales checks only these.

    Args:
        weight: O x I x … float32.
        least: float32[O], the smallest scales in the search.
        grid: Defines the neighbours.

    Returns:
        2 x P, first and second of each pair.
    """
    if grid.pairs == "free":
        return np.zeros((2, 0), np.intp)
    first, second = _neighbours(_ordered(weight, grid.pairs))
    indices = np.arange(weight.size, dtype=np.intp).reshape(weight.shape)
    column = least.reshape(-1, *([1] * (first.ndim - 1)))
    over = np.abs(first + second) > (PAIR_LIMIT - 1) * column  # rounding adds at most one
    return np.stack([part[over] for part in _neighbours(_ordered(indices, grid.pairs))])


def _round(scaled: NDArray[np.float32], pairs: NDArray[np.intp], grid: WeightGrid) -> None:
    """As `nearest`, in place, for weights whose possibly limited pairs are known."""
    flat = scaled.reshape(-1)
    exact = flat[pairs]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -grid.largest, grid.largest, out=scaled)
    first, second = flat[pairs]
    over = np.abs(first + second) > PAIR_LIMIT
    if over.any():
        exact_first, exact_second = exact[:, over]
        flat[pairs[:, over]] = _limited(exact_first, exact_second, grid.largest)
