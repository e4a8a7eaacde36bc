"""Experiments resampled from recordings with known properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from verdict_experiments import Recording, record, repeat

from optimizer.profiling.harness import Cell, Limits, measure
from optimizer.progress import Silent
from tests.profiling.conftest import MakeEngine


def recording(*, noise: float, starts: float = 0.0, rounds: int = 80) -> Recording:
    """Six starts with log-normal calls; ``starts`` is the spread between starts."""
    generator = np.random.default_rng(0)
    return Recording(
        [
            [10 * np.exp(offset + noise * generator.standard_normal(5)) for _ in range(rounds)]
            for offset in starts * generator.standard_normal(6)
        ]
    )


def many(source: Recording, **changes):
    options = {"rounds": 40, "experiments": 30, "slowdown": 0.05, "min_effect": 0.02, "seed": 1}
    return repeat(source, **{**options, **changes})


def test_a_slowdown_is_detected_without_false_alarms_on_a_quiet_machine() -> None:
    outcome = many(recording(noise=0.01))
    assert outcome.experiments == 30
    assert outcome.false_alarms == 0
    assert outcome.detected == 1
    assert outcome.wrong == 0
    assert outcome.unsteady == 0


def test_verdicts_are_inconclusive_on_a_noisy_machine() -> None:
    outcome = many(recording(noise=0.8))
    assert outcome.false_alarms <= 0.05
    assert outcome.detected < 0.5
    assert outcome.wrong <= 0.05
    assert outcome.unsteady > 15


def test_differences_between_starts_count_as_false_alarms() -> None:
    """False alarms are counted if starts really differ."""
    outcome = many(recording(noise=0.001, starts=0.1))
    assert outcome.false_alarms > 0.2


def test_a_slowdown_below_the_smallest_effect_is_not_called_slower() -> None:
    assert many(recording(noise=0.001), slowdown=0.01).detected == 0


def test_more_rounds_than_recorded_are_refused() -> None:
    with pytest.raises(ValueError, match="81 rounds cannot be drawn from 80"):
        many(recording(noise=0.01), rounds=81)


def test_a_recording_contains_the_measured_rounds(make_engine: MakeEngine) -> None:
    path = make_engine(busy_ms=0.5)
    cells = [Cell(name=str(i), engine=path, batch=1, image_size=None, threads=1) for i in range(3)]
    measured = measure(cells, Limits(duration_s=0.1), seed=0, progress=Silent())
    recorded = record(measured.cells)
    assert recorded.rounds == measured.rounds
    assert len(recorded.starts) == 3
    assert all(np.median(r) >= 0.5 for rounds in recorded.starts for r in rounds)
    with pytest.raises(ValueError, match="at least three successful starts"):
        record(measured.cells[:2])


def test_failed_starts_are_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    path = make_engine(nan=True)
    cells = [Cell(name=str(i), engine=path, batch=1, image_size=None, threads=1) for i in range(3)]
    measured = measure(cells, Limits(duration_s=0.05), seed=0, progress=Silent())
    with pytest.raises(ValueError, match="NaN"):
        record(measured.cells)
