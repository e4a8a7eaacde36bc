"""Several starts: intervals include start-to-start variation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.profiling.benchmark import bench
from optimizer.profiling.harness import MIN_ROUNDS
from optimizer.profiling.intervals import Estimate, across_starts
from optimizer.profiling.starts import check_starts
from tests.profiling.conftest import MakeEngine


def test_intervals_cover_start_to_start_variation() -> None:
    """Coverage of the true ratio when the variation within starts is negligible."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        values = np.exp(generator.normal(scale=0.02, size=5))
        value = float(np.exp(np.log(values).mean()))
        low, high = across_starts(
            Estimate(value, (value * 0.9999, value * 1.0001)), values
        ).ci95 or (0, 0)
        covered += low <= 1.0 <= high
    assert 0.935 < covered / 2000 < 0.965


def test_starts_never_narrow_an_interval() -> None:
    wide = Estimate(1.0, (0.9, 1.1))
    assert across_starts(wide, [1.0, 1.0001, 0.9999]) == wide
    assert across_starts(wide, [1.0, 2.0]) == wide, "two starts are not enough"
    none = Estimate(1.0, None)
    assert across_starts(none, [1.0, 1.1, 0.9]) == none


@pytest.mark.parametrize("starts", [0, 2, -1])
def test_too_few_starts_are_refused(starts: int) -> None:
    with pytest.raises(
        UsageError, match=f"{starts} starts cannot show start-to-start variation"
    ) as caught:
        check_starts(starts)
    assert "--starts 1, or at least 3" in str(caught.value.hint)


@pytest.mark.long
def test_start_to_start_variation_is_no_difference_between_engines(make_engine: MakeEngine) -> None:
    """A single start of each would show one, since starts differ by about 10 %."""
    a = make_engine("a", busy_ms=0.3, start_factors=[1.1, 0.95, 1.0, 0.9, 1.05])
    b = make_engine("b", busy_ms=0.3, start_factors=[0.9, 1.05, 0.95, 1.1, 1.0])
    result = bench([a, b], duration="0.5s", threads=1, starts=5, control=False)
    (ratio,) = result.comparisons
    assert math.log(ratio.ci95[1] / ratio.ci95[0]) > 0.06
    assert ratio.ci95[0] < ratio.ratio < ratio.ci95[1]
    assert ratio.verdict == "inconclusive"
    assert result.settings["starts"] == 5
    for engine in result.engines:
        assert engine.rounds >= MIN_ROUNDS
        assert engine.images_per_s_ci95 is not None
        low, high = engine.images_per_s_ci95
        assert math.log(high / low) > 0.03
    assert len(result.conditions.load_1min) == result.engines[0].rounds


def test_a_true_difference_is_detected_across_starts(make_engine: MakeEngine) -> None:
    slow, fast = make_engine("slow", busy_ms=0.4), make_engine("fast", busy_ms=0.2)
    result = bench([fast], against=slow, duration="0.5s", threads=1, starts=3)
    (ratio,) = result.comparisons
    assert ratio.ratio == pytest.approx(2.0)
    assert ratio.verdict == "faster"
    assert result.a_a_control is not None
    assert result.verdict == "pass"
