"""Rounding weights to integers that the target's kernels multiply exactly.

x86 CPUs without VNNI multiply unsigned activations by signed weights and add two neighbouring
products in 16 bits, with saturation (VPMADDUBSW). With weights of 8 bits that sum overflows
whenever 255 * (w1 + w2) does not fit, which corrupts results silently. The usual remedy is weights
of 7 bits everywhere. Here only what can overflow gives way: two neighbours of the same sign keep
|w1| + |w2| <= 128 (255 * 128 = 32,640), by the nearest pair of integers that does; neighbours of
opposite signs need nothing, and most pairs are far from the limit.

Neighbours, as found by probing every pair of inputs of single layers with the largest values
(`tests/targets/test_saturation.py` repeats it): OpenVINO pairs the input channels 2i and 2i + 1 at the
same position of the kernel (``channels``); ONNX Runtime pairs the elements 2j and 2j + 1 of the
kernel in the order height, width, channel (``matrix``), which is the same unless the number of
channels is odd. Signed activations are stored with 128 added before they are multiplied, so the
same limit holds for them.

Not handled: grouped convolutions, whose layout was not probed; they get 7 bits.
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
_NARROWEST = 0.6
"""Smallest scale that is looked at, as a share of the one that clips nothing."""
_COARSE = 1.07
_FINE = (-0.5, -0.25, 0.25, 0.5)
_ROWS = 1 << 16
"""Values rounded at a time, so that they stay in the cache."""


@dataclass(frozen=True)
class WeightGrid:
    """The integers that a layer's weights may take.

    Attributes:
        largest: Largest absolute value.
        pairs: Which neighbours must not exceed `PAIR_LIMIT` together.
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
    """The nearest allowed integers.

    Args:
        scaled: O x I x … weights divided by their scales.
        grid: What is allowed.

    Returns:
        Whole numbers as float32, in the same shape.
    """
    integers = np.rint(scaled)
    np.clip(integers, -grid.largest, grid.largest, out=integers)
    if grid.pairs == "free":
        return integers
    ordered, exact = _ordered(integers, grid.pairs), _ordered(scaled, grid.pairs)
    first, second = _neighbours(ordered)
    over = np.abs(first + second) > PAIR_LIMIT  # of the same sign, for none is larger than 127
    if over.any():
        one, other = (part[over] for part in _neighbours(exact))
        first[over], second[over] = _shared(one, other, grid.largest)
    return _restored(ordered, integers, grid.pairs)


def _shared(
    one: NDArray[np.float32], other: NDArray[np.float32], largest: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The nearest integers whose sum is the limit, for neighbours of the same sign."""
    share = np.clip(np.rint((PAIR_LIMIT + np.abs(one) - np.abs(other)) / 2), 1, largest)
    sign = np.sign(one)
    return sign * share, sign * (PAIR_LIMIT - share)


def _neighbours(ordered: NDArray) -> tuple[NDArray, NDArray]:
    """Views of the first and of the second of each pair; an odd one out has none."""
    even = ordered.shape[1] // 2 * 2
    return ordered[:, 0:even:2], ordered[:, 1:even:2]


def pair_sums(weights: NDArray, grid: WeightGrid) -> NDArray:
    """|w1 + w2| of all neighbours of the same sign; the larger of the two where signs differ.

    Args:
        weights: O x I x … integers or real numbers.
        grid: Says which are neighbours.
    """
    wide = np.int32 if weights.dtype.kind == "i" else weights.dtype
    first, second = _neighbours(_ordered(weights.astype(wide), grid.pairs))
    alone = np.maximum(np.abs(first), np.abs(second))
    return np.asarray(np.where(first * second > 0, np.abs(first + second), alone))


def unsafe_channels(integers: NDArray[np.int8], grid: WeightGrid) -> NDArray[np.bool_]:
    """Channels with integers that the kernels of a CPU would get wrong: bool[O].

    Args:
        integers: O x I x … weights.
        grid: What the target can multiply.
    """
    wide = integers.astype(np.int32)
    unsafe = np.zeros(len(wide), bool)
    if grid.pairs != "free":
        unsafe |= pair_sums(wide, grid).reshape(len(wide), -1).max(axis=1, initial=0) > PAIR_LIMIT
    if grid.largest < 127:
        unsafe |= np.abs(wide).reshape(len(wide), -1).max(axis=1, initial=0) > grid.largest
    return unsafe


def _ordered(array: NDArray, pairs: PairLayout) -> NDArray:
    """Neighbours at 2i and 2i + 1 of the second axis; a view where that is their place already."""
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


_NOTHING = 2.0**-24
"""Scale of a layer without weights: FP16's smallest."""


def scales_of(weight: NDArray[np.float32], grid: WeightGrid, method: str) -> NDArray[np.float32]:
    """One scale an output channel.

    Args:
        weight: O x I x … float32.
        grid: What is allowed; what it costs counts as error.
        method: ``minmax`` for the smallest scale that clips nothing, anything else searches the
            least squared error.

    Returns:
        float32[O]. A channel of zeros has the smallest of the others, or next to nothing if all are
        zeros: engines that add biases in units of the products round its bias by it.
    """
    limit = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    smallest = limit.min(initial=np.inf, where=limit > 0)
    some = smallest if np.isfinite(smallest) else grid.largest * _NOTHING
    limit = np.where(limit == 0, some, limit).astype(np.float32)
    full = np.asarray(limit / np.float32(grid.largest), np.float32)
    if method == "minmax":
        return full if grid.pairs == "free" else np.maximum(full, _unclipped(weight, grid))
    # From 7 bits, where no pair can exceed the limit.
    widest = 1.0 if grid.pairs == "free" else grid.largest / _SEVEN_BITS
    count = 1 + round(np.log(widest / _NARROWEST) / np.log(_COARSE))
    shares = np.geomspace(widest, _NARROWEST, count, dtype=np.float32)
    rows = max(1, _ROWS // max(weight[0].size, 1))
    parts = [slice(start, start + rows) for start in range(0, len(weight), rows)]
    # NumPy lets go of the interpreter's lock while it computes.
    with ThreadPoolExecutor() as pool:
        best = pool.map(lambda p: _least_squared(weight[p], full[p], shares, grid), parts)
        return np.concatenate(list(best))


def _unclipped(weight: NDArray[np.float32], grid: WeightGrid) -> NDArray[np.float32]:
    """The scale at which the heaviest pair of a channel stays within the limit, rounding included."""
    sums = pair_sums(weight, grid)
    heaviest = sums.reshape(len(weight), -1).max(axis=1, initial=0.0)
    return np.asarray(heaviest / (PAIR_LIMIT - 1), np.float32)


def _least_squared(
    weight: NDArray[np.float32],
    full: NDArray[np.float32],
    shares: NDArray[np.float32],
    grid: WeightGrid,
) -> NDArray[np.float32]:
    """From coarse to fine: the error has one wide valley, with ripples that do not matter."""
    heavy = _heavy_pairs(weight, float(shares.min()) * full, grid)
    best, least = full.copy(), np.full(len(full), np.inf)

    def attempt(scale: NDArray[np.float32]) -> None:
        column = scale.reshape(-1, *([1] * (weight.ndim - 1)))
        error = weight / column
        _round(error, heavy, grid)
        error *= column
        error -= weight
        squares = np.square(error).reshape(len(weight), -1).sum(axis=1)
        better = squares < least
        best[better], least[better] = scale[better], squares[better]

    for share in shares:
        attempt(share * full)
    around = best.copy()
    for power in _FINE:
        attempt(np.maximum(around * np.float32(_COARSE**power), shares[-1] * full))
    return best


def _heavy_pairs(
    weight: NDArray[np.float32], least: NDArray[np.float32], grid: WeightGrid
) -> NDArray[np.intp]:
    """Places in the flat weight of the neighbours that may exceed the limit, at any larger scale.

    They are few, so a search over many scales looks at pairs once instead of each time.

    Args:
        weight: O x I x … float32.
        least: float32[O], the smallest scales.
        grid: Says which are neighbours.

    Returns:
        2 x P, first and second of each pair.
    """
    if grid.pairs == "free":
        return np.zeros((2, 0), np.intp)
    first, second = _neighbours(_ordered(weight, grid.pairs))
    places = np.arange(weight.size, dtype=np.intp).reshape(weight.shape)
    column = least.reshape(-1, *([1] * (first.ndim - 1)))
    heavy = np.abs(first + second) > (PAIR_LIMIT - 1) * column  # rounding adds one at most
    return np.stack([part[heavy] for part in _neighbours(_ordered(places, grid.pairs))])


def _round(scaled: NDArray[np.float32], heavy: NDArray[np.intp], grid: WeightGrid) -> None:
    """What `nearest` does, in place, for weights whose heavy pairs are known."""
    flat = scaled.reshape(-1)
    exact = flat[heavy]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -grid.largest, grid.largest, out=scaled)
    first, second = flat[heavy]
    over = np.abs(first + second) > PAIR_LIMIT
    if over.any():
        one, other = exact[:, over]
        flat[heavy[:, over]] = _shared(one, other, grid.largest)
