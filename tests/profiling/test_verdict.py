"""The verdict of a run: failures first, then missing comparisons, then comparisons."""

from __future__ import annotations

from typing import Any

import pytest

from optimizer.profiling.verdict import drift, failures, verdict_of
from optimizer.results import Comparison, EngineBench


def engine(name: str, status: str = "ok", error: str | None = None, **more: Any) -> EngineBench:
    return EngineBench(
        name=name, file=name, backend="x", status=status, error=error,  # type: ignore[arg-type]
        precision="fp32", batch=1, **more,
    )  # fmt: skip


def comparison(ratio: float, verdict: str) -> Comparison:
    return Comparison(
        a="old", b="new", batch=1, ratio=ratio, ci95=(ratio * 0.99, ratio * 1.01),
        min_effect=0.02, verdict=verdict,  # type: ignore[arg-type]
    )  # fmt: skip


ENGINES = [engine("old"), engine("new")]


def test_a_crash_fails_the_run_regardless_of_comparisons() -> None:
    crashed = [engine("old"), engine("new", "failed", "SIGSEGV")]
    failed = failures(crashed)
    verdict, reason = verdict_of(crashed, [], None, failed, gate=True)
    assert (verdict, reason) == ("fail", "1 measurement failed: new at batch 1: SIGSEGV")
    failed = failures(ENGINES, control_error="SIGSEGV")
    verdict, reason = verdict_of(ENGINES, [comparison(1.0, "equivalent")], None, failed, gate=True)
    assert verdict == "fail"
    assert "A/A control: SIGSEGV" in reason


def test_a_gate_without_comparisons_does_not_pass() -> None:
    absent = [engine("old"), engine("new", "unavailable", "no GPU")]
    missing = ["new at batch 1: no GPU"]
    verdict, reason = verdict_of(absent, [], None, gate=True, missing=missing)
    assert (verdict, reason) == (
        "inconclusive", "not compared with the baseline: new at batch 1: no GPU",
    )  # fmt: skip
    assert verdict_of(absent, [], None, gate=False, missing=missing)[0] == "pass"


@pytest.mark.parametrize(("ratio", "difference"), [(1.0, 0.0), (1.04, 0.04), (1 / 1.04, 0.04)])
def test_drift_is_the_difference_of_the_control(ratio: float, difference: float) -> None:
    assert drift(comparison(ratio, "faster")) == pytest.approx(difference)
    assert drift(None) == 0.0
