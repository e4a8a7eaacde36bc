"""Scales from two disjoint halves of the calibration images."""

from __future__ import annotations

from pathlib import Path

import pytest

import optimizer
from optimizer.errors import DataError
from optimizer.precision.int8.halves import compare_halves
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import statistics


def test_equal_halves_have_equal_scales() -> None:
    observed = statistics(network(0), [images(32)])
    differences = compare_halves(observed, observed)
    assert {entry.tensor for entry in differences} == set(observed.tensors)
    assert {(entry.minmax, entry.mse) for entry in differences} == {(0.0, 0.0)}


def test_a_scaled_half_changes_every_scale_by_the_same_factor() -> None:
    small, large = (statistics(network(0), [factor * images(32)]) for factor in (1.0, 2.0))
    differences = {entry.tensor: entry for entry in compare_halves(small, large)}
    assert differences["images"].minmax == pytest.approx(1.0)
    assert differences["images"].mse == pytest.approx(1.0, abs=0.02)
    backwards = {entry.tensor: entry for entry in compare_halves(large, small)}
    assert backwards == differences


def test_scales_of_digits_differ_a_little_and_are_sorted(small_graph: Path, tmp_path: Path) -> None:
    differences = optimizer.calibrate(
        small_graph, tmp_path / "s.npz", calib="digits:train", calib_images=64, halves=True
    ).halves
    assert len(differences) > 20
    assert [entry.mse for entry in differences] == sorted(
        (entry.mse for entry in differences), reverse=True
    )
    assert 0.0 < differences[0].mse < 2.0


def test_too_few_images_are_rejected(small_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few to split into halves"):
        optimizer.calibrate(
            small_graph, tmp_path / "s.npz", calib="digits:train", calib_images=15, halves=True
        )
