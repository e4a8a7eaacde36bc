"""Two halves of the calibration images: what moves, and that it is disjoint images that are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

import optimizer
from optimizer.errors import DataError
from optimizer.precision.int8.halves import compare_halves
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import statistics


def test_equal_halves_do_not_move() -> None:
    seen = statistics(network(0), [images(32)])
    moved = compare_halves(seen, seen)
    assert {one.tensor for one in moved} == set(seen.tensors)
    assert {(one.minmax, one.mse) for one in moved} == {(0.0, 0.0)}


def test_a_louder_half_moves_every_scale_by_its_loudness() -> None:
    quiet, loud = (statistics(network(0), [factor * images(32)]) for factor in (1.0, 2.0))
    moved = {one.tensor: one for one in compare_halves(quiet, loud)}
    assert moved["images"].minmax == pytest.approx(1.0)
    assert moved["images"].mse == pytest.approx(1.0, abs=0.02)
    backwards = {one.tensor: one for one in compare_halves(loud, quiet)}
    assert backwards == moved


def test_digits_move_a_little_and_the_most_moving_come_first(small_graph: Path) -> None:
    moved = optimizer.compare_halves(small_graph, calib="digits:train", calib_images=64)
    assert len(moved) > 20
    assert [one.mse for one in moved] == sorted((one.mse for one in moved), reverse=True)
    assert 0.0 < moved[0].mse < 2.0


def test_too_few_images_are_refused(small_graph: Path) -> None:
    with pytest.raises(DataError, match="cannot be halved"):
        optimizer.compare_halves(small_graph, calib="digits:train", calib_images=15)
