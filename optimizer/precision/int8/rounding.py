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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.targets.rules import PairLayout, TargetRules

__all__ = ["PAIR_LIMIT", "WeightGrid", "nearest", "pair_sums", "scales_of"]

PAIR_LIMIT = 128
_SEVEN_BITS = 64
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
    even = ordered.shape[1] // 2 * 2
    first, second = ordered[:, 0:even:2], ordered[:, 1:even:2]
    over = (np.abs(first + second) > PAIR_LIMIT) & (first * second > 0)
    if over.any():
        one, other = np.abs(exact[:, 0:even:2][over]), np.abs(exact[:, 1:even:2][over])
        share = np.clip(np.rint((PAIR_LIMIT + one - other) / 2), 1, grid.largest)
        sign = np.sign(first[over])
        first[over], second[over] = sign * share, sign * (PAIR_LIMIT - share)
    return _restored(ordered, integers, grid.pairs)


def pair_sums(weights: NDArray, grid: WeightGrid) -> NDArray:
    """|w1 + w2| of all neighbours of the same sign; the larger of the two where signs differ.

    Args:
        weights: O x I x … integers or real numbers.
        grid: Says which are neighbours.
    """
    wide = np.int32 if weights.dtype.kind == "i" else weights.dtype
    ordered = _ordered(weights.astype(wide), grid.pairs)
    even = ordered.shape[1] // 2 * 2
    first, second = ordered[:, 0:even:2], ordered[:, 1:even:2]
    alone = np.maximum(np.abs(first), np.abs(second))
    return np.asarray(np.where(first * second > 0, np.abs(first + second), alone))


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


def scales_of(weight: NDArray[np.float32], grid: WeightGrid, method: str) -> NDArray[np.float32]:
    """One scale an output channel.

    Args:
        weight: O x I x … float32.
        grid: What is allowed; what it costs counts as error.
        method: ``minmax`` for the smallest scale that clips nothing, anything else searches the
            least squared error.

    Returns:
        float32[O]; 1 for a channel of zeros.
    """
    limit = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    limit = np.where(limit == 0, grid.largest, limit).astype(np.float32)
    full = np.asarray(limit / np.float32(grid.largest), np.float32)
    if method == "minmax":
        return full if grid.pairs == "free" else np.maximum(full, _unclipped(weight, grid))
    shares = np.linspace(1.0, 0.6, 17, dtype=np.float32)
    if grid.pairs != "free":  # from 7 bits, where no pair can exceed the limit
        coarse = np.linspace(grid.largest / _SEVEN_BITS, 1.0, 20, dtype=np.float32)
        shares = np.concatenate([coarse[:-1], shares])
    best = full.copy()
    rows = max(1, _ROWS // max(weight[0].size, 1))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        best[part] = _least_squared(weight[part], full[part], shares, grid)
    return best


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
    best, best_error = full.copy(), np.full(len(full), np.inf)
    for share in shares:
        scale = share * full
        column = scale.reshape(-1, *([1] * (weight.ndim - 1)))
        error = nearest(weight / column, grid) * column
        error -= weight
        squares = np.square(error).reshape(len(weight), -1).sum(axis=1)
        better = squares < best_error
        best[better], best_error[better] = scale[better], squares[better]
    return best
