"""Tables of speed and size, and the main table that combines them with accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.reporting.accuracy_cells import places_of
from optimizer.reporting.join import STATUS_WORDS, EngineRow, baseline_label, baseline_name
from optimizer.reporting.links import Links
from optimizer.reporting.numbers import (
    DASH,
    decimals,
    fixed,
    interval,
    mebibytes,
    percent,
    significant,
)
from optimizer.reporting.report_model import SAME, Cell, Column, Notes, Row, Table, verdict_cell
from optimizer.reporting.task_views import view_of
from optimizer.results import Audit, Comparison, EngineBench, RunResult

__all__ = [
    "SAMPLES_NEEDED",
    "comparison_table",
    "computed",
    "latency_cell",
    "main_table",
    "share_text",
]

SAMPLES_NEEDED = {"p90": 29, "p95": 59, "p99": 299, "p99_9": 2995}
"""Samples needed for a distribution-free 95 % upper bound of each percentile.

The largest of n samples exceeds the p-th percentile with probability 1 - p^n; this is the smallest
n for which that is at least 95 %.
"""

_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def main_table(run: RunResult, rows: Sequence[EngineRow], links: Links) -> Table:
    """Speed and accuracy: one group of rows per engine, one row per batch size."""
    notes = Notes()
    base = baseline_label(run.bench) if run.bench else None
    lines: list[Row] = []
    for row in rows:
        head = [_engine_cell(row, links), _precision_cell(row, notes)]
        tail = [*_accuracy_cells(run, row, notes), _size_cell(row, notes), _status_cell(row)]
        benches: Sequence[EngineBench | None] = row.benches or [None]
        for index, bench in enumerate(benches):
            speed = _speed_cells(run, row, bench, notes, links)
            cells = [*head, *speed, *tail]
            if index:
                cells = [SAME, SAME, *speed, *([SAME] * len(tail))]
            last = index == len(benches) - 1
            lines.append(Row(cells, remark=_remark(row) if last else None))
    baseline = f" Speed-up is relative to {base}." if base else ""
    table = Table(
        id="engines",
        caption="Speed and accuracy of every engine; intervals are 95 %." + baseline,
        columns=[
            Column("Engine", numeric=False),
            Column("Precision", numeric=False, hint="requested → computed"),
            Column("Batch", "images"),
            Column("Throughput", "images/s", hint="95 % interval"),
            Column("Speed-up", "×", hint="95 % interval"),
            Column("p50", "ms"),
            Column("p99", "ms"),
            *view_of(run.validate_).summary_columns,
            Column("Size", "MiB"),
            Column("Status", numeric=False),
        ],
        rows=lines,
        notes=notes.all(),
    )
    return table.keep(range(len(table.columns)))


def _remark(row: EngineRow) -> str | None:
    if not row.reasons:
        return None
    word = STATUS_WORDS[row.status] if row.status != "ok" else "incomplete"
    return f"{row.name}: {word}: {'; '.join(row.reasons)}"


def _engine_cell(row: EngineRow, links: Links) -> Cell:
    href = links.to(row.path) if row.status in ("ok", "built-not-run") else None
    backend = "PyTorch eager" if row.backend == "torch" else row.backend
    where = {bench.runs_on for bench in row.benches} - {None, "cpu"}
    if row.backend == "torch" and where:
        backend = f"{backend}, {', '.join(sorted(map(str, where)))}"
    return Cell(row.name, detail=backend, href=href)


def _precision_cell(row: EngineRow, notes: Notes) -> Cell:
    # A storage-only engine is audited as FP32, but its label states what was requested.
    requested = row.precision or (row.audit.asked if row.audit else None)
    if requested is None:
        return notes.missing("The requested precision was not recorded.")
    if row.audit is None:
        mark = notes.mark(
            "No precision audit: the precision this engine computes in was not checked."
        )
        return Cell(requested, detail="not audited", mark=mark)
    if row.audit.share is None:
        mark = notes.mark("The engine does not report the precision of its layers.")
        return Cell(requested, detail="not reported", mark=mark)
    badge = None if row.audit.verdict == "pass" else row.audit.verdict
    return Cell(requested, detail=f"→ {computed(row.audit)}", badge=badge)


def computed(audit: Audit) -> str:
    """``int8 97.2 %, fp32 2.8 %``: shares of the FLOPs, largest first."""
    shares = sorted(audit.computed.items(), key=lambda item: -item[1])
    texts = [
        f"{name} {share_text(share)} %".replace(" ", _NO_BREAK_SPACE) for name, share in shares
    ]
    return ", ".join(texts) or DASH


def share_text(share: float) -> str:
    """A share in percent with one decimal; 0 and 100 only if exact."""
    if 0 < share < 0.0005:
        return "< 0.1"
    return "> 99.9" if 0.9995 <= share < 1 else percent(share, 1)


def _speed_cells(
    run: RunResult, row: EngineRow, bench: EngineBench | None, notes: Notes, links: Links
) -> list[Cell]:
    if bench is None:
        why = "Not timed." if run.bench else "This run has no benchmark."
        if run.bench and row.status != "ok":
            why = f"Not timed: {STATUS_WORDS[row.status]}."
        return [notes.missing(why)] * 5
    batch = Cell(str(bench.batch), value=bench.batch)
    if bench.status != "ok":
        why = f"Not timed: {STATUS_WORDS[bench.status]}."
        return [batch, *([notes.missing(why)] * 4)]
    return [
        batch,
        _rate_cell(bench, notes, links),
        _speedup_cell(row, bench, notes),
        latency_cell(bench, "p50", notes),
        latency_cell(bench, "p99", notes),
    ]


def _rate_cell(bench: EngineBench, notes: Notes, links: Links) -> Cell:
    rate = bench.images_per_s
    if rate is None:
        return notes.missing("No throughput was recorded.")
    bounds = bench.images_per_s_ci95
    mark = None if bounds else notes.mark("No interval: there are too few rounds.")
    return Cell(
        significant(rate),
        value=rate,
        detail=interval(bounds, decimals(rate)),
        bounds=bounds,
        mark=mark,
        href=links.to(bench.raw_file),
    )


def _speedup_cell(row: EngineRow, bench: EngineBench, notes: Notes) -> Cell:
    if row.is_baseline:
        return Cell("1", value=1, detail="baseline")
    comparison = row.speedups.get(bench.batch)
    if comparison is None:
        return notes.missing(
            "Not compared with the baseline in interleaved rounds at this batch size."
        )
    return ratio_cell(comparison)


def ratio_cell(comparison: Comparison) -> Cell:
    """The ratio of a comparison with its interval; highlighted if inconclusive or slower."""
    badges = {"inconclusive": "inconclusive", "slower": "fail"}
    places = 2 if comparison.ratio >= 2 else 3
    return Cell(
        fixed(comparison.ratio, places),
        value=comparison.ratio,
        detail=interval(comparison.ci95, places),
        bounds=comparison.ci95,
        badge=badges.get(comparison.verdict),
    )


def latency_cell(bench: EngineBench, which: str, notes: Notes) -> Cell:
    """One percentile in ms, or a dash that states how many samples are needed."""
    value = getattr(bench.latency_ms, which) if bench.latency_ms else None
    if value is not None:
        return Cell(significant(value), value=value)
    if bench.latency_ms is None:
        return notes.missing("No latency was recorded.")
    label, needed = which.replace("_", "."), SAMPLES_NEEDED.get(which, 0)
    if bench.samples < needed:
        why = (
            f"Too few samples for {label}: a distribution-free 95 % bound needs {needed:,} samples."
        )
        return notes.missing(why, detail=f"n = {bench.samples:,}")
    return notes.missing(f"{label} was not recorded.")


def _accuracy_cells(run: RunResult, row: EngineRow, notes: Notes) -> list[Cell]:
    hop, view = row.hop, view_of(run.validate_)
    if hop is None or hop.status != "ok":
        why = "This run has no validation." if run.validate_ is None else "Not validated."
        if run.validate_ and row.status != "ok":
            why = f"Not validated: {STATUS_WORDS[row.status]}.{_prediction(run, row)}"
        return [notes.missing(why)] * len(view.summary_columns)
    return view.summary_cells(hop, notes, is_reference=row.is_reference)


def _prediction(run: RunResult, row: EngineRow) -> str:
    """Accuracy of the graph, executed as written, of an engine that cannot run here."""
    graph = row.graph_hop(run)
    accuracy = None if graph is None else view_of(run.validate_).accuracy(graph)
    if graph is None or accuracy is None or graph.drop_pp is None:
        return ""
    places = places_of(graph)
    drop = f"{fixed(graph.drop_pp, places, sign='+')} {interval(graph.drop_ci95_pp, places) or ''}"
    return (
        f" The graph it was built from, executed as written: {accuracy}, drop {drop.strip()} pp "
        f"({graph.name})."
    )


def _size_cell(row: EngineRow, notes: Notes) -> Cell:
    sizes = [bench.engine_bytes for bench in row.benches if bench.engine_bytes is not None]
    size = max(sizes) if sizes else row.size_when_built
    if size is None:
        return notes.missing("The size of this engine was not recorded.")
    return Cell(mebibytes(size), value=size / 2**20)


def _status_cell(row: EngineRow) -> Cell:
    if row.status != "ok":
        badge = "fail" if row.status == "failed" else "inconclusive"
        return Cell(STATUS_WORDS[row.status], badge=badge)
    verdicts = {
        "accuracy": row.hop.verdict if row.hop and not row.is_reference else None,
        "precision": row.audit.verdict if row.audit else None,
        "batch consistency": _worst([check.verdict for check in row.consistency]),
    }
    judged = {check: verdict for check, verdict in verdicts.items() if verdict}
    problems = [f"{check} {verdict}" for check, verdict in judged.items() if verdict != "pass"]
    worst = _worst(list(judged.values()))
    if any(bench.status != "ok" for bench in row.benches):
        problems, worst = ["not timed at every batch size", *problems], "fail"
    if problems:
        return Cell("; ".join(problems), badge=worst)
    if not judged:
        return Cell("ok", detail="reference" if row.is_reference else "not judged")
    return Cell("pass", detail=", ".join(judged), badge="pass")


def _worst(verdicts: Sequence[str]) -> str | None:
    return next((v for v in ("fail", "inconclusive", "pass") if v in verdicts), None)


def comparison_table(run: RunResult) -> Table | None:
    """All paired comparisons of the run; ``None`` if there are none."""
    if not run.bench or not run.bench.comparisons:
        return None
    base = baseline_name(run.bench)
    rows: list[Row] = []
    previous = None
    for c in sorted(run.bench.comparisons, key=lambda c: (c.a != base, c.a)):
        cells = [
            Cell(c.a) if c.a != previous else SAME,
            Cell(c.b),
            Cell(str(c.batch), value=c.batch),
            ratio_cell(c),
            Cell(percent(c.min_effect, 1), value=c.min_effect * 100),
            verdict_cell(c.verdict),
        ]
        rows.append(Row(cells))
        previous = c.a
    return Table(
        id="comparisons",
        caption="Paired comparisons from interleaved rounds: the speed of B relative to A.",
        columns=[
            Column("A", numeric=False),
            Column("B", numeric=False),
            Column("Batch", "images"),
            Column("Speed of B / A", "×", hint="95 % interval"),
            Column("Smallest effect of interest", "%"),
            Column("B is", numeric=False),
        ],
        rows=rows,
    )
