"""Open questions of a run, what would decide them, and what it cannot answer at all."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.reporting.join import EngineRow
from optimizer.reporting.numbers import fixed, interval
from optimizer.reporting.provenance import image_sizes
from optimizer.results import BenchResult, RunResult

__all__ = ["limits", "open_questions"]


def open_questions(run: RunResult, rows: Sequence[EngineRow]) -> list[str]:
    """Undecided questions, each with what would decide it; empty if there are none."""
    questions = []
    if run.validate_ and run.validate_.verdict == "inconclusive":
        n, needed = run.validate_.dataset.n, run.validate_.images_needed
        remedy = f"about {needed:,} images would" if needed else "more images might"
        questions.append(
            f"Accuracy: {n:,} images cannot decide whether the drop is within "
            f"{run.validate_.gates.max_drop_pp:g} pp; {remedy}."
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
    undecided = [c for c in bench.comparisons if c.verdict == "inconclusive"]
    questions = []
    for a, b in dict.fromkeys((c.a, c.b) for c in undecided):
        pair = [c for c in undecided if (c.a, c.b) == (a, b)]
        intervals = " and ".join(f"{interval(c.ci95, 3)} at batch {c.batch}" for c in pair)
        questions.append(
            f"Speed of {b} relative to {a}: the interval of the ratio, {intervals}, shows neither a "
            f"difference of {pair[0].min_effect * 100:g} % (the smallest effect of interest) nor its "
            "absence. More rounds on a quieter machine would narrow the interval."
        )
    return questions


def limits(run: RunResult, rows: Sequence[EngineRow]) -> list[str]:
    """What cannot be concluded from this run, whatever the verdict."""
    sentences = []
    if run.validate_ is None:
        sentences.append("Anything about accuracy: this run has no validation.")
    else:
        sentences.append(_resolution(run))
    if run.bench is None:
        sentences.append("Anything about speed: this run has no benchmark.")
    else:
        sentences.append(
            "Anything about speed on another machine, or at another image size, batch size or number "
            f"of threads. Image size in this run: {image_sizes(run)}."
        )
        control = run.bench.a_a_control
        if control is None:
            sentences.append(
                "Whether the method reports differences that do not exist: this run has no A/A "
                "control."
            )
        elif control.verdict != "equivalent":
            sentences.append(
                f"Small differences in speed: the A/A control, an engine compared with itself, is "
                f"{control.verdict} with a ratio of {fixed(control.ratio, 3)} "
                f"{interval(control.ci95, 3)}."
            )
    sentences += [_not_run(run, row) for row in rows if row.status == "built-not-run"]
    latencies = [b.latency_ms for row in rows for b in row.benches if b.latency_ms]
    if any(latency.p99 is None for latency in latencies):
        sentences.append("Tail latency where p99 is a dash: there are too few samples.")
    return sentences


def _not_run(run: RunResult, row: EngineRow) -> str:
    if row.graph_hop(run) is None:
        return f"Anything about the speed or accuracy of {row.name}: built, not run."
    return (
        f"The speed of {row.name}: built, not run. Its accuracy is known only from its graph, "
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
        f"That an engine loses no accuracy: with {n:,} images the smallest upper bound of a drop in "
        f"this run is {fixed(min(ends), 2)} pp. On other data the drop may differ."
    )
