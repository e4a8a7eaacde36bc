"""The CSV report: one row per engine and batch size, unrounded, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from optimizer.reporting.curve_charts import marks_of
from optimizer.reporting.join import EngineRow, engine_rows
from optimizer.results import Curve, CurvePoint, EngineBench, Hop, Interval, Latency, RunResult

__all__ = ["csv_of", "render_csv"]

Value = str | int | float | None


def render_csv(run: RunResult) -> str:
    """Render one run as CSV; unknown values are empty fields.

    Shares and accuracies are fractions of one, as in ``results.json``.
    """
    return csv_of([run])


def csv_of(runs: Sequence[RunResult]) -> str:
    """Render several runs as one CSV; the column ``run`` distinguishes them."""
    records = [record for run in runs for row in engine_rows(run) for record in _records(run, row)]
    stream = io.StringIO()
    columns = list(records[0]) if records else list(_record_columns())
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _field(value) for name, value in record.items()})
    return stream.getvalue()


def _records(run: RunResult, row: EngineRow) -> list[dict[str, Value]]:
    timed = [_record(run, row, bench) for bench in row.benches] or [_record(run, row, None)]
    curves = run.bench.curves if run.bench else []
    names = {bench.name for bench in row.benches}
    return timed + [
        _point_record(timed[0], curve, point)
        for curve in curves
        if curve.engine in names
        for point in curve.points
    ]


_ENGINE_COLUMNS = ("run", "run_created", "engine", "file", "backend", "precision_asked",
                  "precision_computed_shares", "precision_share")  # fmt: skip


def _point_record(
    engine_record: dict[str, Value], curve: Curve, point: CurvePoint
) -> dict[str, Value]:
    """A setting of a sweep: columns of its engine, and the values measured at this setting."""
    latency, (low, high) = point.latency_ms, point.bounded_ci95_ms or (None, None)
    values: dict[str, Value] = {
        **{name: engine_record[name] for name in _ENGINE_COLUMNS},
        "timing": "by the clock",
        "status": point.status,
        "reason": point.error,
        "batch_images": point.setting.batch,
        "threads": point.setting.threads,
        "streams": point.setting.streams,
        "samples": point.samples,
        "rounds": point.rounds,
        "throughput_images_per_s": point.images_per_s,
        **_ends("throughput_images_per_s", point.images_per_s_ci95),
        **_latencies(latency),
        **_ends("latency_p50_ms", point.latency_ci95_ms),
        "sweep_marks": "; ".join(marks_of(curve, point)) or None,
        "bounded_percentile": curve.bound.percentile if curve.bound else None,
        "bounded_low_ms": low,
        "bounded_high_ms": high,
        "raw_samples_file": point.raw_file,
    }
    return {name: values.get(name) for name in engine_record}


def _latencies(latency: Latency | None) -> dict[str, Value]:
    names = ("mean", "p50", "p90", "p95", "p99", "p99_9")
    return {f"latency_{name}_ms": getattr(latency, name, None) for name in names}


def _record_columns() -> list[str]:
    empty = RunResult(
        created="",
        title="",
        command="",
        recipe={},
        environment={},
        stages=[],
        verdict="inconclusive",
        findings=[],
        seconds=0,
    )
    return list(_record(empty, EngineRow(""), None))


def _record(run: RunResult, row: EngineRow, bench: EngineBench | None) -> dict[str, Value]:
    latency = bench.latency_ms if bench else None
    speedup = row.speedups.get(bench.batch) if bench else None
    hop, audit = row.hop, row.audit
    checks = [check.verdict for check in row.consistency]
    return {
        "run": run.title,
        "run_created": run.created,
        "engine": row.name,
        "file": row.file,
        "backend": row.backend,
        "precision_asked": audit.asked if audit else row.precision,
        "precision_computed_shares": _shares(row),
        "precision_share": audit.share if audit else None,
        "timing": "compute" if bench else None,
        "status": bench.status if bench and row.status == "ok" else row.status,
        "reason": "; ".join(row.reasons) or None,
        "batch_images": bench.batch if bench else None,
        "image_size_px": bench.image_size if bench else None,
        "threads": bench.threads if bench else None,
        "streams": bench.streams if bench else None,
        "samples": bench.samples if bench else None,
        "rounds": bench.rounds if bench else None,
        "throughput_images_per_s": bench.images_per_s if bench else None,
        **_ends("throughput_images_per_s", bench.images_per_s_ci95 if bench else None),
        "rate_batches_per_s": bench.batches_per_s if bench else None,
        "speedup_against": speedup.a if speedup else None,
        "speedup_ratio": speedup.ratio if speedup else None,
        **_ends("speedup_ratio", speedup.ci95 if speedup else None),
        "speedup_verdict": speedup.verdict if speedup else None,
        **_latencies(latency),
        **_ends("latency_p50_ms", bench.latency_ci95_ms if bench else None),
        "process_start_s": bench.start_s if bench else None,
        "first_inference_ms": bench.first_inference_ms if bench else None,
        "build_s": bench.build_s if bench else None,
        "load_s": bench.load_s if bench else None,
        "engine_size_bytes": bench.engine_bytes if bench else None,
        "peak_rss_bytes": bench.peak_rss_bytes if bench else None,
        "gpu_memory_bytes": bench.gpu_memory_bytes if bench else None,
        "energy_j": bench.energy_j if bench else None,
        "accuracy_n_images": hop.n if hop else None,
        "top1_fraction": hop.top1 if hop else None,
        **_ends("top1_fraction", hop.top1_ci95 if hop else None),
        "top5_fraction": hop.top5 if hop else None,
        "drop_pp": hop.drop_pp if hop else None,
        **_ends("drop_pp", hop.drop_ci95_pp if hop else None),
        "mcnemar_p": hop.mcnemar_p if hop else None,
        "flips_images": hop.flips if hop else None,
        **_detection(hop),
        "sqnr_db": hop.sqnr_db if hop else None,
        "max_abs_diff_logits": hop.max_abs_diff if hop else None,
        "accuracy_verdict": hop.verdict if hop else None,
        "precision_verdict": audit.verdict if audit else None,
        "batch_consistency_verdict": "; ".join(checks) or None,
        "sweep_marks": None,
        "bounded_percentile": None,
        "bounded_low_ms": None,
        "bounded_high_ms": None,
        "raw_samples_file": bench.raw_file if bench else None,
    }


def _detection(hop: Hop | None) -> dict[str, Value]:
    """Columns of detectors; empty for classifiers."""
    found = hop.detection if hop else None
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "score_threshold")
    counts = {f"{name}_detections": getattr(found, name, None) for name in ("lost", "new")}
    return {**{name: getattr(found, name, None) for name in names}, **counts}


def _ends(name: str, bounds: Interval | None) -> dict[str, Value]:
    low, high = bounds or (None, None)
    return {f"{name}_ci95_low": low, f"{name}_ci95_high": high}


def _shares(row: EngineRow) -> str | None:
    if not row.audit or row.audit.share is None:
        return None
    return "; ".join(f"{name}={share!r}" for name, share in row.audit.computed.items())


def _field(value: Value) -> Value:
    # Spreadsheets execute text that looks like a formula; numbers are left unchanged.
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return value
