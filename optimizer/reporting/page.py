"""The HTML report: one file without scripts or network access, for screen (light, dark) and print."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.reporting import (
    accuracy,
    charts,
    curve_charts,
    front_section,
    open_ends,
    provenance,
    pruning_section,
    scenario_section,
    speed,
    time_section,
    training_section,
)
from optimizer.reporting.join import EngineRow, engine_rows
from optimizer.reporting.links import Links
from optimizer.reporting.numbers import decimals, fixed, interval, moment, significant
from optimizer.reporting.report_model import Cell, Column, Notes, Row, Table, verdict_cell
from optimizer.reporting.roofline_section import ROOF_HEIGHT, ROOF_WIDTH, profile_views, roof_facts
from optimizer.reporting.task_views import TaskView, view_of
from optimizer.results import ProfileResult, RunResult

if TYPE_CHECKING:
    import jinja2

__all__ = ["render_html"]

TEMPLATES = Path(__file__).parent / "templates"
VERDICT_WORDS = {
    "pass": "Pass",
    "fail": "Fail",
    "inconclusive": "Inconclusive",
}
VERDICT_MEANING = {
    "pass": "All limits are met.",
    "fail": "At least one limit is not met.",
    "inconclusive": "The data cannot decide whether the limits are met.",
}


def render_html(
    runs: Sequence[tuple[RunResult, Path]], profiles: Sequence[ProfileResult | None] = ()
) -> str:
    """Render one or several runs as one self-contained page.

    Args:
        runs: Each run with its folder *relative to the folder of the page* (``Path(".")`` for a
            page inside the run folder), where links start.
        profiles: The profile of each run, ``None`` for a run without one; may be empty.

    Returns:
        The page. It loads nothing: styles and charts are inline, and a content security policy
        forbids scripts and requests, whatever the names in the results contain.
    """
    layers = profiles or [None] * len(runs)
    views = [
        _view(number, run, Links(folder), profile)
        for number, ((run, folder), profile) in enumerate(zip(runs, layers, strict=True), 1)
    ]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            views=views,
            several=len(views) > 1,
            overview=overview_table(views) if len(views) > 1 else None,
            across=across_table(views) if len(views) > 1 else None,
            title=views[0].run.title if len(views) == 1 else f"{len(views)} runs side by side",
            verdict_words=VERDICT_WORDS,
            verdict_meaning=VERDICT_MEANING,
            panel=(charts.PANEL_WIDTH, charts.PANEL_HEIGHT),
            roof=(ROOF_WIDTH, ROOF_HEIGHT),
            curve_frame=charts.FRAME,
            samples_needed=speed.SAMPLES_NEEDED,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["moment"] = moment
    return environment


@dataclass(frozen=True)
class View:
    """One run, ready for the template."""

    number: int
    run: RunResult
    links: Links
    rows: Sequence[EngineRow]
    parts: dict[str, Any]
    """Tables, charts and facts by name; ``None`` where the run has none."""

    @property
    def task(self) -> TaskView:
        """How accuracy is shown."""
        return view_of(self.run.validate_)

    @property
    def id(self) -> str:
        """Prefix of the HTML ids of this run."""
        return f"r{self.number}"


def _view(number: int, run: RunResult, links: Links, profile: ProfileResult | None) -> View:
    rows = engine_rows(run)
    validate, bench = run.validate_, run.bench
    parts: dict[str, Any] = {
        "measured_on": provenance.measured_on(run),
        "open_questions": open_ends.open_questions(run, rows),
        "limits": open_ends.limits(run, rows),
        "engines": speed.main_table(run, rows, links),
        "throughput": charts.throughput_chart(rows),
        "front": front_section.front_table(run, rows),
        "front_charts": front_section.front_charts(run, rows),
        "pruning": pruning_section.pruning_facts(run),
        "pruning_steps": pruning_section.pruning_steps(run),
        "widths": pruning_section.width_table(run, profile),
        "width_chart": pruning_section.width_chart(run),
        "comparisons": speed.comparison_table(run),
        "curves": curve_charts.curve_table(run, links),
        "curve_charts": curve_charts.curve_charts(run),
        "curve_sentences": curve_charts.curve_sentences(run),
        "latency": time_section.latency_table(run, links),
        "cost": time_section.cost_table(run, links),
        "rounds": charts.round_panels(run),
        "task_tables": view_of(validate).tables(validate) if validate else [],
        "drawings": view_of(validate).drawings(validate) if validate else None,
        "drops": charts.drop_chart(validate) if validate else None,
        "hops": accuracy.hop_table(run, validate, links) if validate else None,
        "blocks": accuracy.block_table(validate) if validate else None,
        "consistency": accuracy.consistency_table(rows),
        "audit": accuracy.audit_table(rows),
        "layers": list(filter(None, map(accuracy.layer_table, count(1), rows))),
        "profile": profile_views(profile) if profile else None,
        "roofs": roof_facts(profile) if profile else None,
        "builds": provenance.build_table(rows, links),
        "training": training_section.training_table(run),
        "training_charts": training_section.training_charts(run),
        "conditions": provenance.condition_facts(bench.conditions) if bench else None,
        "scenarios": scenario_section.scenario_table(bench) if bench else None,
        "stages": provenance.stage_table(run, links),
        "digests": provenance.digest_table(run, links),
        "libraries": provenance.library_table(run),
        "environment": provenance.environment_facts(run),
        "recipe": recipe_yaml(run),
        "predictions": links.to(validate.predictions_file) if validate else None,
        "control": _control(run),
        "validate_json": _source(run, links, "validate.json"),
        "bench_json": _source(run, links, "bench.json"),
    }
    return View(number, run, links, rows, parts)


def recipe_yaml(run: RunResult) -> str | None:
    """The recipe as YAML, keys in their original order."""
    import yaml

    if not run.recipe:
        return None
    return str(yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True))


def _source(run: RunResult, links: Links, name: str) -> tuple[str, str]:
    """Link and name of a stage's result file, or of ``results.json`` if no stage wrote it."""
    href = links.to(name) if any(stage.file == name for stage in run.stages) else None
    return (href, name) if href else (links.results, "results.json")


def _control(run: RunResult) -> str | None:
    control = run.bench.a_a_control if run.bench else None
    if control is None:
        return None
    return (
        f"{control.a} compared with itself at batch {control.batch}: ratio {fixed(control.ratio, 3)}, "
        f"95 % interval {interval(control.ci95, 3)}."
    )


# --- several runs ------------------------------------------------------------------------------


def overview_table(views: Sequence[View]) -> Table:
    """One row per run: verdict, machine and data."""
    rows = []
    for view in views:
        run = view.run
        facts = {fact.label: fact.text for fact in view.parts["measured_on"]}
        machine = run.bench.conditions.cpu if run.bench else "not recorded"
        cells = [
            Cell(f"Run {view.number}: {run.title}", detail=moment(run.created), href=f"#{view.id}"),
            verdict_cell(run.verdict),
            Cell(machine),
            Cell(facts["Image size"]),
            Cell(facts.get("Threads", "not measured")),
            Cell(facts.get("Data", "not measured")),
        ]
        rows.append(Row(cells))
    headings = ("Run", "Verdict", "CPU", "Image size", "Threads", "Data")
    return Table(
        id="overview",
        caption="The runs in this report.",
        columns=[Column(heading, numeric=False) for heading in headings],
        rows=rows,
    )


def across_table(views: Sequence[View]) -> Table:
    """Throughput and drop of engines with the same name in every run."""
    notes = Notes()
    keys: dict[tuple[str, int | None], None] = {}
    for engine in (row for view in views for row in view.rows):
        batches: list[int | None] = [bench.batch for bench in engine.benches]
        keys |= dict.fromkeys((engine.name, batch) for batch in batches or [None])
    rows = []
    for name, batch in keys:
        size = notes.missing("Not timed in any run.")
        if batch is not None:
            size = Cell(str(batch), value=batch)
        cells = [Cell(name), size]
        for view in views:
            row = next((r for r in view.rows if r.name == name), None)
            cells += _across_cells(row, batch, notes)
        rows.append(Row(cells))
    columns = [Column("Engine", numeric=False), Column("Batch", "images")]
    for number, _ in enumerate(views, 1):
        columns.append(Column(f"Run {number}: throughput", "images/s", hint="95 % interval"))
        columns.append(Column(f"Run {number}: drop", "pp", hint="paired 95 %"))
    table = Table(
        id="across",
        caption=(
            "Engines with the same name in every run. The runs were not interleaved, so there is no "
            "interval for the difference between them; resnet-opt compare compares two runs."
        ),
        columns=columns,
        rows=rows,
        notes=notes.all(),
    )
    return table.keep(range(len(columns)))


def _across_cells(row: EngineRow | None, batch: int | None, notes: Notes) -> list[Cell]:
    if row is None:
        return [notes.missing("No engine of this name in this run.")] * 2
    rate = notes.missing("Not timed at this batch in this run.")
    for bench in row.benches:
        if bench.batch == batch and bench.images_per_s is not None:
            bounds, places = bench.images_per_s_ci95, decimals(bench.images_per_s)
            rate = Cell(
                significant(bench.images_per_s),
                value=bench.images_per_s,
                detail=interval(bounds, places),
                bounds=bounds,
            )
    drop = notes.missing("Not validated in this run.")
    if row.is_reference:
        drop = Cell("0", value=0, detail="reference")
    elif row.hop and row.hop.drop_pp is not None:
        bounds = row.hop.drop_ci95_pp
        drop = Cell(
            fixed(row.hop.drop_pp, 2, sign="+"),
            value=row.hop.drop_pp,
            detail=interval(bounds, 2, sign="+"),
            bounds=bounds,
        )
    return [rate, drop]
