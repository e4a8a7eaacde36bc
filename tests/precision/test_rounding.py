"""Rounded integer weights never saturate the 16-bit sums of a kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizer.precision.int8.rounding import PAIR_LIMIT, WeightGrid, nearest, pair_sums, scales_of
from optimizer.targets.rules import TARGETS

SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
)
WEIGHTS = SHAPES.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-200, 200, width=32))
)
GRIDS = st.sampled_from([WeightGrid(127, "channels"), WeightGrid(127, "matrix")])


def _neighbours(kernel: np.ndarray, pairs: str) -> list[tuple[int, int]]:
    """Independent implementation: channels at one position, or elements by height, width, channel."""
    channels = kernel.shape[0]
    flat = np.moveaxis(kernel.reshape(channels, -1), 0, -1).astype(int)  # position x channel
    if pairs == "channels":
        return [(int(row[i]), int(row[i + 1])) for row in flat for i in range(0, channels - 1, 2)]
    line = flat.ravel()
    return [(int(line[i]), int(line[i + 1])) for i in range(0, len(line) - 1, 2)]


@given(WEIGHTS, GRIDS)
def test_no_sum_of_two_products_saturates_16_bits(scaled: np.ndarray, grid: WeightGrid) -> None:
    integers = nearest(scaled, grid).astype(np.int8)
    for kernel in integers:
        for first, second in _neighbours(kernel, grid.pairs):
            products = [a * first + b * second for a in (0, 255) for b in (0, 255)]
            assert min(products) >= -32768
            assert max(products) <= 32767
    if (sums := pair_sums(integers, grid)).size:
        assert sums.max() <= PAIR_LIMIT


@given(WEIGHTS, GRIDS)
def test_weights_whose_pairs_fit_are_rounded_to_nearest(
    scaled: np.ndarray, grid: WeightGrid
) -> None:
    free = nearest(scaled, WeightGrid(127))
    if not (sums := pair_sums(free.astype(np.int8), grid)).size or sums.max() <= PAIR_LIMIT:
        np.testing.assert_array_equal(nearest(scaled, grid), free)


@given(st.floats(1, 127, width=32), st.floats(1, 127, width=32), st.sampled_from([-1, 1]))
def test_a_pair_that_does_not_fit_becomes_the_nearest_that_does(
    first: float, second: float, sign: int
) -> None:
    scaled = sign * np.array([[first, second]], np.float32)
    rounded = nearest(scaled, WeightGrid(127, "channels"))
    best = min(
        float(np.square(np.abs(scaled[0]) - (a, b)).sum())
        for a in range(128)
        for b in range(min(127, PAIR_LIMIT - a) + 1)
    )
    assert float(np.square(rounded - scaled).sum()) == pytest.approx(best, abs=1e-3)


@settings(max_examples=30)
@given(st.integers(0, 1000), GRIDS)
def test_least_squared_error_scales_are_never_worse_than_seven_bits(
    seed: int, grid: WeightGrid
) -> None:
    weight = np.random.default_rng(seed).normal(size=(8, 6, 3, 3)).astype(np.float32)

    def error(grid: WeightGrid, method: str) -> np.ndarray:
        scale = scales_of(weight, grid, method).reshape(-1, 1, 1, 1)
        return np.square(nearest(weight / scale, grid) * scale - weight).sum(axis=(1, 2, 3))

    assert (error(grid, "mse") <= error(WeightGrid(64), "minmax") * 1.0001).all()
    assert error(grid, "mse").sum() < 0.75 * error(WeightGrid(64), "mse").sum()


@given(WEIGHTS, GRIDS)
def test_min_max_scales_do_not_clip(weight: np.ndarray, grid: WeightGrid) -> None:
    scale = scales_of(weight, grid, "minmax").reshape(-1, *([1] * (weight.ndim - 1)))
    scaled = weight / np.maximum(scale, 1e-20)
    assert (np.abs(nearest(scaled, grid) - scaled) <= 0.501).all()


def test_grouped_convolutions_get_seven_bits_where_products_are_paired() -> None:
    from dataclasses import replace

    rules = replace(TARGETS["openvino"], pairs="channels")
    assert WeightGrid.of(rules, 32) == WeightGrid(64, "free")
    assert WeightGrid.of(rules, 1) == WeightGrid(127, "channels")
    assert WeightGrid.of(TARGETS["openvino"], 32) == WeightGrid(127, "free")
