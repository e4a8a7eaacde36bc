"""The sentences at the head of the report say no more than the numbers."""

from __future__ import annotations

from optimizer.reporting.findings import findings
from optimizer.results import RunResult


def _said(run: RunResult) -> list[str]:
    audits = run.validate_.audits if run.validate_ else {}
    return findings(run.validate_, run.bench, audits, run.stages)


def test_the_fastest_engine_and_its_accuracy_come_first(full_run: RunResult) -> None:
    assert full_run.bench is not None
    first, second, *_ = _said(full_run)
    smallest = min(c.batch for c in full_run.bench.comparisons)
    best = max(
        (c for c in full_run.bench.comparisons if c.batch == smallest), key=lambda c: c.ratio
    )
    assert first.startswith(best.b)
    assert f"{best.ci95[0]:.2f} to {best.ci95[1]:.2f}" in first or f"{best.ci95[0]:.1f} to" in first
    assert "of 540 predictions changed" in second


def test_an_unsteady_machine_gets_no_factor(full_run: RunResult) -> None:
    assert full_run.bench is not None
    unsteady = full_run.bench.model_copy(
        update={"verdict": "inconclusive", "reason": "too unsteady"}
    )
    (first, *_) = _said(full_run.model_copy(update={"bench": unsteady}))
    assert "could not be measured: too unsteady" in first
    assert "times as fast" not in " ".join(_said(full_run.model_copy(update={"bench": unsteady})))


def test_every_sample_has_sentences(any_run: RunResult) -> None:
    for sentence in _said(any_run):
        assert sentence.strip()
        assert sentence.endswith((".", "!", "?", ">", "`", "x")) or sentence[-1].isalnum()
