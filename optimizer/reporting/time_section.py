"""Detailed timing tables: latency percentiles, and start-up, memory and energy."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.reporting.links import Links
from optimizer.reporting.numbers import decimals, fixed, interval, mebibytes, significant
from optimizer.reporting.report_model import Cell, Column, Notes, Row, Table
from optimizer.reporting.speed import latency_cell
from optimizer.results import EngineBench, RunResult

__all__ = ["cost_table", "latency_table"]

_PERCENTILES = {"p90": "p90", "p95": "p95", "p99": "p99", "p99_9": "p99.9"}


def latency_table(run: RunResult, links: Links) -> Table | None:
    """Sample sizes and percentiles of every timed engine."""
    timed = _timed(run)
    if not timed:
        return None
    notes = Notes()
    table = Table(
        id="latency",
        caption="Latency per batch.",
        columns=[
            Column("Engine", numeric=False),
            Column("Batch", "images"),
            Column("Samples", hint="rounds"),
            Column("Warm-up", "calls"),
            Column("Mean", "ms"),
            Column("p50", "ms", hint="95 % interval"),
            *[Column(label, "ms") for label in _PERCENTILES.values()],
            Column("Rate", "batches/s"),
        ],
        rows=[Row(_latency_cells(bench, notes, links)) for bench in timed],
        notes=notes.all(),
    )
    return table.keep(range(len(table.columns)))


def _timed(run: RunResult) -> list[EngineBench]:
    return [e for e in run.bench.engines if e.status == "ok"] if run.bench else []


def _latency_cells(bench: EngineBench, notes: Notes, links: Links) -> list[Cell]:
    latency = bench.latency_ms
    p50 = latency_cell(bench, "p50", notes)
    if latency and bench.latency_ci95_ms:
        bounds = bench.latency_ci95_ms
        detail = interval(bounds, decimals(latency.p50))
        p50 = Cell(p50.text, value=latency.p50, detail=detail, bounds=bounds)
    return [
        *_head(bench, links),
        Cell(f"{bench.samples:,}", value=bench.samples, detail=f"{bench.rounds} rounds"),
        _number(bench.warmup_calls, 0),
        latency_cell(bench, "mean", notes),
        p50,
        *(latency_cell(bench, percentile, notes) for percentile in _PERCENTILES),
        _number(bench.batches_per_s),
    ]


def _head(bench: EngineBench, links: Links) -> list[Cell]:
    return [
        Cell(bench.name, href=links.to(bench.raw_file)),
        Cell(str(bench.batch), value=bench.batch),
    ]


def cost_table(run: RunResult, links: Links) -> Table | None:
    """Threads, spans, start-up, memory and energy of every timed engine."""
    timed = _timed(run)
    if not timed:
        return None
    spans = list(dict.fromkeys(span for bench in timed for span in bench.spans_ms))
    return Table(
        id="cost",
        caption="Spans (medians), start-up, memory and energy. Columns without values are omitted.",
        columns=[
            Column("Engine", numeric=False),
            Column("Batch", "images"),
            Column("Threads"),
            Column("Streams"),
            *[Column(span.replace("_", " ").capitalize(), "ms") for span in spans],
            Column("Process start", "s", optional=True),
            Column("Load", "s", optional=True),
            Column("First call", "ms", optional=True),
            Column("Peak memory", "MiB", optional=True),
            Column("GPU memory", "MiB", optional=True),
            Column("Energy", "J per image", optional=True),
        ],
        rows=[Row(_cost_cells(bench, spans, links)) for bench in timed],
    ).without_empty_columns()


def _cost_cells(bench: EngineBench, spans: Sequence[str], links: Links) -> list[Cell]:
    return [
        *_head(bench, links),
        _number(bench.threads, 0),
        _number(bench.streams, 0),
        *(_milliseconds(bench.spans_ms.get(span)) for span in spans),
        _number(bench.start_s),
        _number(bench.load_s),
        _number(bench.first_inference_ms),
        _mebibyte_cell(bench.peak_rss_bytes),
        _mebibyte_cell(bench.gpu_memory_bytes),
        _number(bench.energy_j),
    ]


def _milliseconds(value: float | None) -> Cell:
    """Milliseconds with at most four decimal places."""
    return _number(value, None if value is None else min(4, decimals(value)))


def _number(value: float | None, places: int | None = None) -> Cell:
    text = significant(value) if places is None else fixed(value, places)
    return Cell(text, value=value)


def _mebibyte_cell(size: int | None) -> Cell:
    return Cell(mebibytes(size), value=None if size is None else size / 2**20)
