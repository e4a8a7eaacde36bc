"""What a run leaves undecided, what would decide it, and what it can never tell."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.reporting.join import EngineRow
from optimizer.reporting.numbers import fixed, interval
from optimizer.reporting.provenance import image_sizes
from optimizer.results import BenchResult, RunResult

__all__ = ["limits", "open_questions"]


def open_questions(run: RunResult, rows: Sequence[EngineRow]) -> list[str]:
    """What is undecided, each with what would decide it; empty if nothing is."""
    questions = []
    if run.validate_ and run.validate_.verdict == "inconclusive":
        n, needed = run.validate_.dataset.n, run.validate_.images_needed
        decide = f"about {needed:,} images would decide it" if needed else "more images would"
        questions.append(
            f"Accuracy: {n:,} images cannot tell whether the drop is within "
            f"{run.validate_.gates.max_drop_pp:g} pp; {decide}."
        )
    questions += [
        f"Precision of {row.name}: {row.audit.reason}"
        for row in rows
        if row.audit and row.audit.verdict == "inconclusive"
    ]
    if run.bench:
        if run.bench.verdict == "inconclusive":
            questions.append(f"Speed: {run.bench.reason}")
        questions += _open_comparisons(run.bench)
    return questions


def _open_comparisons(bench: BenchResult) -> list[str]:
    open_ones = [c for c in bench.comparisons if c.verdict == "inconclusive"]
    questions = []
    for a, b in dict.fromkeys((c.a, c.b) for c in open_ones):
        pair = [c for c in open_ones if (c.a, c.b) == (a, b)]
        found = " and ".join(f"{interval(c.ci95, 3)} at batch {c.batch}" for c in pair)
        questions.append(
            f"Speed of {b} against {a}: the interval of the ratio, {found}, shows neither a "
            f"difference of {pair[0].min_effect * 100:g} %, the smallest effect of interest, "
            "nor its absence. More rounds on a quieter machine would narrow it."
        )
    return questions


def limits(run: RunResult, rows: Sequence[EngineRow]) -> list[str]:
    """What cannot be concluded from this run, whatever the verdict."""
    said = []
    if run.validate_ is None:
        said.append("Anything about accuracy: this run has no validation.")
    else:
        said.append(_resolution(run))
    if run.bench is None:
        said.append("Anything about speed: this run has no benchmark.")
    else:
        said.append(
            "Anything about speed on another machine, at another image size, batch or number of "
            f"threads. Image size here: {image_sizes(run)}."
        )
        control = run.bench.a_a_control
        if control is None:
            said.append(
                "Whether the method raises false alarms here: there is no A/A control in this run."
            )
        elif control.verdict != "equivalent":
            said.append(
                f"Small differences in speed: the A/A control, an engine against itself, came out "
                f"{control.verdict} with a ratio of {fixed(control.ratio, 3)} "
                f"{interval(control.ci95, 3)}."
            )
    said += [_not_run(run, row) for row in rows if row.status == "built-not-run"]
    latencies = [b.latency_ms for row in rows for b in row.benches if b.latency_ms]
    if any(latency.p99 is None for latency in latencies):
        said.append("The tail of latency where p99 is a dash: there are too few samples for it.")
    return said


def _not_run(run: RunResult, row: EngineRow) -> str:
    if row.graph_hop(run) is None:
        return f"Anything about the speed or accuracy of {row.name}: built, not run."
    return (
        f"The speed of {row.name}: built, not run. Its accuracy is known only as that of its graph, "
        "executed as written by another engine."
    )


def _resolution(run: RunResult) -> str:
    assert run.validate_ is not None
    hops = [hop for hop in run.validate_.hops if hop.parent is not None]
    ends = [hop.drop_ci95_pp[1] for hop in hops if hop.drop_ci95_pp]
    n = run.validate_.dataset.n
    if not ends:
        return f"Small drops in accuracy: there are {n:,} images and no paired interval."
    return (
        f"That an engine loses nothing: with {n:,} images the smallest upper bound of a drop in "
        f"this run is {fixed(min(ends), 2)} pp. Nor that the drop is the same on other data."
    )
