"""Experiments cut out of recordings whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from verdict_experiments import Recording, record, repeat

from optimizer.profiling.harness import Cell, Limits, measure
from optimizer.progress import Silent
from tests.profiling.conftest import MakeEngine


def recording(*, noise: float, starts: float = 0.0, rounds: int = 80) -> Recording:
    """Six starts with log-normal calls; ``starts`` is the spread between the starts."""
    generator = np.random.default_rng(0)
    return Recording(
        [
            [10 * np.exp(own + noise * generator.standard_normal(5)) for _ in range(rounds)]
            for own in starts * generator.standard_normal(6)
        ]
    )


def many(found: Recording, **changes):
    asked = {"rounds": 40, "experiments": 30, "slowdown": 0.05, "min_effect": 0.02, "seed": 1}
    return repeat(found, **{**asked, **changes})


def test_a_quiet_machine_finds_the_slowdown_and_raises_no_alarm() -> None:
    outcome = many(recording(noise=0.01))
    assert outcome.experiments == 30
    assert outcome.false_alarms == 0
    assert outcome.found == 1
    assert outcome.wrong == 0
    assert outcome.unsteady == 0


def test_a_wild_machine_says_that_it_does_not_know() -> None:
    outcome = many(recording(noise=0.8))
    assert outcome.false_alarms <= 0.05
    assert outcome.found < 0.5
    assert outcome.wrong <= 0.05
    assert outcome.unsteady > 15


def test_starts_that_really_differ_are_seen_as_alarms() -> None:
    """The counting can fail: what it counts are differences that are there."""
    outcome = many(recording(noise=0.001, starts=0.1))
    assert outcome.false_alarms > 0.2


def test_a_slowdown_below_the_smallest_effect_is_not_called_slower() -> None:
    assert many(recording(noise=0.001), slowdown=0.01).found == 0


def test_rounds_that_are_not_there_cannot_be_cut_out() -> None:
    with pytest.raises(ValueError, match="81 rounds cannot be cut out of 80"):
        many(recording(noise=0.01), rounds=81)


def test_a_recording_is_what_the_harness_measured(make_engine: MakeEngine) -> None:
    path = make_engine(busy_ms=0.5)
    cells = [Cell(name=str(i), engine=path, batch=1, image_size=None, threads=1) for i in range(3)]
    measured = measure(cells, Limits(duration_s=0.1), seed=0, progress=Silent())
    found = record(measured.cells)
    assert found.rounds == measured.rounds
    assert len(found.starts) == 3
    assert all(np.median(r) >= 0.5 for rounds in found.starts for r in rounds)
    with pytest.raises(ValueError, match="three starts"):
        record(measured.cells[:2])


def test_a_failed_start_is_no_recording(make_engine: MakeEngine, tmp_path: Path) -> None:
    path = make_engine(nan=True)
    cells = [Cell(name=str(i), engine=path, batch=1, image_size=None, threads=1) for i in range(3)]
    measured = measure(cells, Limits(duration_s=0.05), seed=0, progress=Silent())
    with pytest.raises(ValueError, match="NaN"):
        record(measured.cells)
