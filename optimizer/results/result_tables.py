"""Results as tables, for the terminal and notebooks."""

from __future__ import annotations

from optimizer.results.bench_result import BenchResult
from optimizer.results.curve_result import Curve
from optimizer.results.profile_result import EngineProfile, TimedPart
from optimizer.results.validate_result import ValidateResult
from optimizer.tables import Table

__all__ = ["bench_table", "curve_table", "profile_table", "scenario_table", "validation_table"]


def validation_table(result: ValidateResult) -> Table:
    """One row per hop."""
    rows = []
    for hop in result.hops:
        interval = hop.drop_ci95_pp
        rows.append(
            (
                hop.name,
                hop.executor,
                _number(hop.top1, "{:.2%}"),
                _number(hop.drop_pp, "{:+.2f}"),
                f"{interval[0]:+.2f} … {interval[1]:+.2f}" if interval else "–",
                _number(hop.flips, "{}"),
                _number(hop.sqnr_db, "{:.1f}"),
                hop.verdict or hop.error or hop.status,
            )
        )
    columns = (
        "hop", "computed by", "top-1", "drop, pp", "95 % interval", "flips", "SQNR, dB", "verdict",
    )  # fmt: skip
    return Table(columns, rows, result.finding)


def bench_table(result: BenchResult) -> Table:
    """One row per engine and batch size."""
    ratios = {(c.b, c.batch): c for c in result.comparisons}
    baseline = result.settings.get("baseline")
    rows = []
    for engine in result.engines:
        ratio = ratios.get((engine.name, engine.batch))
        latency = engine.latency_ms
        uncompared = "baseline" if engine.name == (baseline or engine.name) else "not compared"
        rows.append(
            (
                engine.name,
                str(engine.batch),
                _number(engine.images_per_s, "{:.1f}"),
                _number(latency.p50 if latency else None, "{:.2f}"),
                _number(latency.p99 if latency else None, "{:.2f}"),
                f"{ratio.ratio:.2f}x" if ratio else "–",
                f"{ratio.ci95[0]:.2f} … {ratio.ci95[1]:.2f}" if ratio else "–",
                ratio.verdict if ratio else engine.error or uncompared,
            )
        )
    columns = (
        "engine", "batch", "images/s", "p50, ms", "p99, ms", "ratio", "95 % interval", "",
    )  # fmt: skip
    return Table(columns, rows, result.reason)


def curve_table(curve: Curve, marks: list[str]) -> Table:
    """One row per setting of a sweep.

    Args:
        curve: The sweep of one engine.
        marks: A remark for each point (knee, best setting), or an empty string.
    """
    rows = []
    for point, mark in zip(curve.points, marks, strict=True):
        setting, rates, latency = point.setting, point.images_per_s_ci95, point.latency_ms
        rows.append(
            (
                str(setting.batch),
                str(setting.threads),
                str(setting.streams),
                _number(point.images_per_s, "{:.1f}"),
                f"{rates[0]:.1f} … {rates[1]:.1f}" if rates else "–",
                _number(latency.p50 if latency else None, "{:.2f}"),
                _number(latency.p99 if latency else None, "{:.2f}"),
                point.error or mark,
            )
        )
    columns = (
        "batch", "threads", "streams", "images/s", "95 % interval", "p50, ms", "p99, ms", "",
    )  # fmt: skip
    return Table(columns, rows)


def scenario_table(result: BenchResult) -> Table:
    """One row per engine and LoadGen scenario."""
    rows = [
        (
            scenario.engine,
            scenario.scenario,
            "–" if scenario.value is None else f"{scenario.value:.2f} {scenario.unit}",
            scenario.error or scenario.metric or "",
            _number(scenario.latency_ms.get("p50"), "{:.2f}"),
            _number(scenario.latency_ms.get("p99"), "{:.2f}"),
            str(scenario.queries),
            _number(scenario.duration_s, "{:.1f}"),
        )
        for scenario in result.scenarios
    ]
    columns = (
        "engine", "scenario", "value", "metric", "p50, ms", "p99, ms", "queries", "s",
    )  # fmt: skip
    return Table(columns, rows)


def profile_table(engine: EngineProfile, parts: list[TimedPart]) -> Table:
    """One row per layer or block of a profiled engine."""
    rows = []
    for part in parts:
        interval, rate, share = part.time_ci95_ms, part.flops_per_s, part.ceiling_share
        rows.append(
            (
                part.name,
                part.precision,
                f"{part.time_ms:.3f}",
                f"{interval[0]:.3f} … {interval[1]:.3f}" if interval else "–",
                f"{part.share:.1%}",
                f"{rate / 1e9:.1f}" if rate else "–",
                f"{share:.0%} of {part.ceiling}" if share is not None else "–",
                part.bound or "–",
            )
        )
    columns = (
        "", "computes in", "ms", "95 % interval", "share", "GFLOP/s", "of ceiling", "bound by",
    )  # fmt: skip
    caption = f"{engine.name}, batch {engine.batch}, {engine.threads} threads"
    return Table(columns, rows, caption)


def _number(value: float | None, template: str) -> str:
    return "–" if value is None else template.format(value)
