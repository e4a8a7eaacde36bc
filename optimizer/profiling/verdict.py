"""What a run of `bench` came to, in a word and a reason."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.results import Comparison, EngineBench, Interval, ScenarioResult, VerdictName

__all__ = ["UNSTEADY", "UNUSABLE", "drift", "failures", "largest_effect", "spread", "verdict_of"]

UNSTEADY = 0.10
"""Difference of an engine from itself above which only larger differences are claimed."""
UNUSABLE = 0.50
"""Difference of an engine from itself above which a run cannot say anything."""


def largest_effect(control: Comparison | None) -> float:
    """The largest difference that the same engine may have from itself, by the control."""
    if control is None:
        return 0.0
    return spread(control.ci95)


def drift(control: Comparison | None) -> float:
    """By how much the same engine, started twice, did differ from itself; 0.1 for 0.9 and 1.1."""
    return 0.0 if control is None else max(control.ratio, 1 / control.ratio) - 1


def spread(interval: Interval) -> float:
    """How far the ends of an interval of a ratio lie from one, 0.1 for 1.1 and for 1 / 1.1."""
    low, high = interval
    return max(high, 1 / low) - 1


def failures(
    engines: Sequence[EngineBench],
    scenarios: Sequence[ScenarioResult] = (),
    control_error: str | None = None,
) -> list[str]:
    """What crashed, hung or gave no numbers, each with its error.

    Args:
        engines: All that was measured, sweeps included.
        scenarios: What was run with LoadGen.
        control_error: Why the second start of the baseline failed, if it did.
    """
    failed = [f"{e.name} at batch {e.batch}: {e.error}" for e in engines if e.status == "failed"]
    failed += [f"{s.engine}, {s.scenario}: {s.error}" for s in scenarios if s.status == "failed"]
    return failed + ([f"the baseline, started again: {control_error}"] if control_error else [])


def verdict_of(
    engines: Sequence[EngineBench],
    comparisons: Sequence[Comparison],
    control: Comparison | None,
    failed: Sequence[str] = (),
    *,
    gate: bool,
    missing: Sequence[str] = (),
) -> tuple[VerdictName, str]:
    """What a whole run came to.

    Args:
        engines: All that was measured, sweeps included.
        comparisons: Of engines with the baseline.
        control: The baseline against itself.
        failed: What `failures` tells.
        gate: Whether an engine that is slower than the baseline fails the run.
        missing: Comparisons with the baseline that could not be made, each with the reason.
    """
    if failed:
        some = "1 measurement" if len(failed) == 1 else f"{len(failed)} measurements"
        return "fail", f"{some} failed: {'; '.join(failed)}"
    if gate and missing:
        return "inconclusive", f"not compared with the baseline: {'; '.join(missing)}"
    floor = largest_effect(control)
    # `judge` has held each ratio against this floor: faster and slower are beyond it.
    decided = bool(comparisons) and all(c.verdict in {"faster", "slower"} for c in comparisons)
    if floor > UNUSABLE or (floor > UNSTEADY and (gate or not decided)):
        return "inconclusive", (
            f"this machine is too unsteady: the same engine, started twice, may differ from itself "
            f"by {floor:.0%}"
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
    open_ones = by_verdict["inconclusive"]
    if open_ones and (gate or len(open_ones) == len(comparisons)):
        return "inconclusive", (
            f"{len(open_ones)} of {len(comparisons)} comparisons cannot be decided against the "
            f"smallest effect of {open_ones[0].min_effect:.1%}; measure longer or on a quieter "
            "machine"
        )
    measured = sum(e.status == "ok" for e in engines)
    counts = ", ".join(f"{len(cs)} {v}" for v, cs in by_verdict.items() if cs)
    said = f"{measured} of {len(engines)} measured" + (f"; {counts}" if counts else "")
    if floor > UNSTEADY:
        said += f"; the baseline, started twice, may differ from itself by {floor:.0%}"
    return "pass", said
