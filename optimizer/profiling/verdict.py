"""The verdict of a `bench` run and its reason."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.results import Comparison, EngineBench, Interval, ScenarioResult, VerdictName

__all__ = ["UNSTEADY", "UNUSABLE", "drift", "failures", "largest_effect", "spread", "verdict_of"]

UNSTEADY = 0.10
"""A/A difference above which only larger differences are reported."""
UNUSABLE = 0.50
"""A/A difference above which a run is inconclusive."""


def largest_effect(control: Comparison | None) -> float:
    """Upper bound of the A/A difference, from the control's interval."""
    if control is None:
        return 0.0
    return spread(control.ci95)


def drift(control: Comparison | None) -> float:
    """Observed A/A difference; 0.1 for a ratio of 1.1 or 1 / 1.1."""
    return 0.0 if control is None else max(control.ratio, 1 / control.ratio) - 1


def spread(interval: Interval) -> float:
    """Largest distance of a ratio's interval from one; 0.1 for 1.1 or 1 / 1.1."""
    low, high = interval
    return max(high, 1 / low) - 1


def failures(
    engines: Sequence[EngineBench],
    scenarios: Sequence[ScenarioResult] = (),
    control_error: str | None = None,
) -> list[str]:
    """Failed measurements, each with its error.

    Args:
        engines: All measured engines, including sweeps.
        scenarios: LoadGen results.
        control_error: Why the A/A control failed, if it did.
    """
    failed = [f"{e.name} at batch {e.batch}: {e.error}" for e in engines if e.status == "failed"]
    failed += [f"{s.engine}, {s.scenario}: {s.error}" for s in scenarios if s.status == "failed"]
    return failed + ([f"A/A control: {control_error}"] if control_error else [])


def verdict_of(
    engines: Sequence[EngineBench],
    comparisons: Sequence[Comparison],
    control: Comparison | None,
    failed: Sequence[str] = (),
    *,
    gate: bool,
    missing: Sequence[str] = (),
) -> tuple[VerdictName, str]:
    """The verdict of a whole run, and its reason.

    Args:
        engines: All measured engines, including sweeps.
        comparisons: Comparisons of engines with the baseline.
        control: The A/A comparison of the baseline.
        failed: The result of `failures`.
        gate: Whether an engine that is slower than the baseline fails the run.
        missing: Engines that could not be compared with the baseline, each with the reason.
    """
    if failed:
        count = "1 measurement" if len(failed) == 1 else f"{len(failed)} measurements"
        return "fail", f"{count} failed: {'; '.join(failed)}"
    if gate and missing:
        return "inconclusive", f"not compared with the baseline: {'; '.join(missing)}"
    floor = largest_effect(control)
    # `judge` has applied this floor: ratios called faster or slower exceed it.
    decided = bool(comparisons) and all(c.verdict in {"faster", "slower"} for c in comparisons)
    if floor > UNUSABLE or (floor > UNSTEADY and (gate or not decided)):
        return "inconclusive", (
            f"this machine is too unsteady: two copies of the same engine may differ by {floor:.0%}"
        )
    by_verdict = {
        v: [c for c in comparisons if c.verdict == v]
        for v in ("faster", "slower", "equivalent", "inconclusive")
    }
    if gate and by_verdict["slower"]:
        worst = min(by_verdict["slower"], key=lambda c: c.ratio)
        return "fail", (
            f"{worst.b} runs at {worst.ratio:.3f} times the speed of {worst.a} at batch "
            f"{worst.batch} (95 % interval {worst.ci95[0]:.3f} to {worst.ci95[1]:.3f})"
        )
    undecided = by_verdict["inconclusive"]
    if undecided and (gate or len(undecided) == len(comparisons)):
        return "inconclusive", (
            f"{len(undecided)} of {len(comparisons)} comparisons are undecided at a smallest "
            f"effect of {undecided[0].min_effect:.1%}; measure longer or on a quieter machine"
        )
    measured = sum(e.status == "ok" for e in engines)
    counts = ", ".join(f"{len(cs)} {v}" for v, cs in by_verdict.items() if cs)
    reason = f"{measured} of {len(engines)} measured" + (f"; {counts}" if counts else "")
    if floor > UNSTEADY:
        reason += f"; two copies of the baseline may differ by {floor:.0%}"
    return "pass", reason
