"""LoadGen scenarios: one row per engine and scenario; these are not MLPerf results."""

from __future__ import annotations

from optimizer.reporting.numbers import significant
from optimizer.reporting.report_model import Cell, Column, Notes, Row, Table
from optimizer.results import SCENARIO_LABEL, BenchResult, ScenarioResult

__all__ = ["scenario_table"]


def scenario_table(bench: BenchResult) -> Table | None:
    """All scenarios that were run; ``None`` if there are none."""
    if not bench.scenarios:
        return None
    notes = Notes()
    return Table(
        id="scenarios",
        caption=f"{SCENARIO_LABEL}. Values from LoadGen's detail log.",
        columns=[
            Column("Engine", numeric=False),
            Column("Scenario", numeric=False),
            Column("Metric", numeric=False),
            Column("Value"),
            Column("p50", "ms per query"),
            Column("p90", "ms per query"),
            Column("p99", "ms per query"),
            Column("Queries", hint="samples"),
            Column("Duration", "s"),
        ],
        rows=[Row(_cells(scenario, notes)) for scenario in bench.scenarios],
        notes=notes.all(),
    )


def _cells(scenario: ScenarioResult, notes: Notes) -> list[Cell]:
    head = [Cell(scenario.engine), Cell(scenario.scenario)]
    if scenario.status != "ok" or scenario.value is None:
        missing = notes.missing(scenario.error or "; ".join(scenario.notes) or "No value.")
        return [*head, missing, *[Cell("–")] * 6]
    mark = notes.mark("; ".join(scenario.notes)) if scenario.notes else None
    latencies = [scenario.latency_ms.get(name) for name in ("p50", "p90", "p99")]
    return [
        *head,
        Cell(scenario.metric or "–", mark=mark),
        Cell(f"{significant(scenario.value)} {scenario.unit}", value=scenario.value),
        *[Cell(significant(ms), value=ms) for ms in latencies],
        Cell(f"{scenario.queries:,}", value=scenario.queries, detail=f"{scenario.samples:,}"),
        Cell(significant(scenario.duration_s), value=scenario.duration_s),
    ]
