"""Tables of single results for the terminal; the whole run's table is the report's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.results import BenchResult, Curve, ValidateResult

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["curve_table", "measured_table", "scenario_table", "validated_table"]


def validated_table(result: ValidateResult) -> Table:
    """One row a hop."""
    table = _table(
        "hop", "computed by", "top-1", "drop, pp", "95 % interval", "flips", "SQNR, dB", "verdict"
    )
    for hop in result.hops:
        low_high = hop.drop_ci95_pp
        table.add_row(
            hop.name,
            hop.executor,
            _number(hop.top1, "{:.2%}"),
            _number(hop.drop_pp, "{:+.2f}"),
            f"{low_high[0]:+.2f} … {low_high[1]:+.2f}" if low_high else "–",
            _number(hop.flips, "{}"),
            _number(hop.sqnr_db, "{:.1f}"),
            hop.verdict or hop.error or hop.status,
        )
    return table


def measured_table(result: BenchResult) -> Table:
    """One row an engine and batch size."""
    table = _table(
        "engine", "batch", "images/s", "p50, ms", "p99, ms", "ratio", "95 % interval", ""
    )
    ratios = {(c.b, c.batch): c for c in result.comparisons}
    for engine in result.engines:
        compared = ratios.get((engine.name, engine.batch))
        latency = engine.latency_ms
        table.add_row(
            engine.name,
            str(engine.batch),
            _number(engine.images_per_s, "{:.1f}"),
            _number(latency.p50 if latency else None, "{:.2f}"),
            _number(latency.p99 if latency else None, "{:.2f}"),
            f"{compared.ratio:.2f}x" if compared else "–",
            f"{compared.ci95[0]:.2f} … {compared.ci95[1]:.2f}" if compared else "–",
            compared.verdict if compared else engine.error or _uncompared(engine.name, result),
        )
    return table


def _uncompared(name: str, result: BenchResult) -> str:
    return "baseline" if name == result.settings.get("baseline", name) else "not compared"


def curve_table(curve: Curve) -> Table:
    """One row a setting of a sweep; the knees and the best setting are marked."""
    from optimizer.reporting.curves import marks_of

    table = _table(
        "batch", "threads", "streams", "images/s", "95 % interval", "p50, ms", "p99, ms", ""
    )
    for point in curve.points:
        at, rates, latency = point.setting, point.images_per_s_ci95, point.latency_ms
        table.add_row(
            str(at.batch),
            str(at.threads),
            str(at.streams),
            _number(point.images_per_s, "{:.1f}"),
            f"{rates[0]:.1f} … {rates[1]:.1f}" if rates else "–",
            _number(latency.p50 if latency else None, "{:.2f}"),
            _number(latency.p99 if latency else None, "{:.2f}"),
            point.error or ", ".join(marks_of(curve, point)),
        )
    return table


def scenario_table(result: BenchResult) -> Table:
    """One row an engine and LoadGen scenario."""
    table = _table(
        "engine", "scenario", "value", "what it is", "p50, ms", "p99, ms", "queries", "s"
    )
    for found in result.scenarios:
        table.add_row(
            found.engine,
            found.scenario,
            "–" if found.value is None else f"{found.value:.2f} {found.unit}",
            found.error or found.metric or "",
            _number(found.latency_ms.get("p50"), "{:.2f}"),
            _number(found.latency_ms.get("p99"), "{:.2f}"),
            str(found.queries),
            _number(found.duration_s, "{:.1f}"),
        )
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
