"""The Markdown report: the essentials of the page as compact tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from optimizer.reporting import (
    accuracy,
    curve_charts,
    front_section,
    open_ends,
    provenance,
    pruning_section,
    scenario_section,
    speed,
    training_section,
)
from optimizer.reporting.join import EngineRow, engine_rows
from optimizer.reporting.links import Links
from optimizer.reporting.numbers import fixed, interval
from optimizer.reporting.page import VERDICT_MEANING, VERDICT_WORDS, recipe_yaml
from optimizer.reporting.provenance import Fact
from optimizer.reporting.report_model import Cell, Row, Table
from optimizer.reporting.roofline_section import profile_views, roof_facts
from optimizer.reporting.task_views import view_of
from optimizer.results import ProfileResult, RunResult

__all__ = ["render_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def render_markdown(
    run: RunResult, folder: Path = Path(), profile: ProfileResult | None = None
) -> str:
    """Render one run as Markdown.

    Args:
        run: The run.
        folder: The run folder, relative to the folder of the Markdown file.
        profile: The profile by layer, if there is one.
    """
    links = Links(folder)
    rows = engine_rows(run)
    bench = run.bench
    lines = [
        f"# {_text(run.title)}",
        "",
        f"**Verdict: {VERDICT_WORDS[run.verdict]}.** {VERDICT_MEANING[run.verdict]}",
        "",
        *[f"{i}. {_text(finding)}" for i, finding in enumerate(run.findings, 1)],
        "",
        *_bullets("Open questions and what would decide them", open_ends.open_questions(run, rows)),
        f"Evidence: {_link('results.json', links.results)}",
        "",
        "## What was measured",
        "",
        *_facts(provenance.measured_on(run)),
        "## Speed and accuracy",
        "",
        *_table(speed.main_table(run, rows, links)),
        *_table(front_section.front_table(run, rows)),
        *_table(speed.comparison_table(run)),
        *_table(curve_charts.curve_table(run, links)),
        *_bullets("Knees and bounds", curve_charts.curve_sentences(run)),
        *(_table(scenario_section.scenario_table(bench)) if bench else []),
        "## Accuracy hop by hop",
        "",
    ]
    lines += _accuracy(run, rows, links)
    lines += _pruning(run, profile)
    lines += ["## Precision audit", ""]
    audit = accuracy.audit_table(rows)
    lines += _table(audit) if audit else ["Not audited in this run.", ""]
    lines += ["## Reliability of the timings", ""]
    if bench:
        lines += [_text(bench.reason), "", *_control(run)]
        lines += _facts(provenance.condition_facts(bench.conditions))
    else:
        lines += ["This run has no benchmark: the speed of its engines is unknown.", ""]
    if profile is not None:
        lines += _layers(profile)
    lines += ["## Builds", "", *_table(provenance.build_table(rows, links))]
    lines += _table(training_section.training_table(run))
    lines += _bullets("## What cannot be concluded", open_ends.limits(run, rows))
    lines += ["## How to reproduce", "", *_fenced(run.command, "sh")]
    recipe = recipe_yaml(run)
    if recipe:
        lines += _fenced(recipe.rstrip("\n"), "yaml")
    lines += [*_table(provenance.digest_table(run, links)), *_table(provenance.library_table(run))]
    return "\n".join(lines).rstrip("\n") + "\n"


def _accuracy(run: RunResult, rows: Sequence[EngineRow], links: Links) -> list[str]:
    validate = run.validate_
    if validate is None:
        return ["This run has no validation: the accuracy of its engines is unknown.", ""]
    return [
        _text(validate.finding),
        "",
        *_table(accuracy.hop_table(run, validate, links)),
        *(line for table in view_of(validate).tables(validate) for line in _table(table)),
        *_table(accuracy.block_table(validate)),
        *_table(accuracy.consistency_table(rows)),
    ]


def _pruning(run: RunResult, profile: ProfileResult | None) -> list[str]:
    facts = pruning_section.pruning_facts(run)
    if facts is None:
        return []
    tables = (pruning_section.width_table(run, profile), pruning_section.pruning_steps(run))
    return ["## Pruning", "", *_facts(facts), *(line for t in tables for line in _table(t))]


def _layers(profile: ProfileResult) -> list[str]:
    lines = ["## Layers and roofline", "", f"{_text(profile.headline)}.", ""]
    lines += _facts(roof_facts(profile))
    for view in profile_views(profile):
        lines += [f"### {_text(view.name)}", "", _text(view.sentence), "", *_table(view.table)]
    return lines


def _control(run: RunResult) -> list[str]:
    control = run.bench.a_a_control if run.bench else None
    if control is None:
        return ["A/A control: none in this run.", ""]
    ratio = f"{fixed(control.ratio, 3)} {interval(control.ci95, 3)}"
    name = f"{_text(control.a)} compared with itself at batch {control.batch}"
    return [f"A/A control: {name} is **{control.verdict}**, ratio {ratio}.", ""]


def _text(text: str) -> str:
    """Text on one line with Markdown and HTML escaped."""
    escaped = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")


def _link(text: str, href: str | None) -> str:
    # The link is URL-quoted; only parentheses could end it.
    if href is None:
        return _text(text)
    return f"[{_text(text)}]({href.replace('(', '%28').replace(')', '%29')})"


def _fenced(text: str, language: str) -> list[str]:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence, ""]


def _bullets(heading: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    head = heading if heading.startswith("#") else f"**{heading}**"
    return [head, "", *[f"- {_text(item)}" for item in items], ""]


def _facts(facts: Sequence[Fact]) -> list[str]:
    return [*[f"- {_text(fact.label)}: {_text(fact.text)}" for fact in facts], ""]


def _cell(cell: Cell) -> str:
    text = _link(cell.text, cell.href) if cell.text else ""
    if cell.mark:
        text += f"<sup>{cell.mark}</sup>"
    return f"{text} {_text(cell.detail)}" if cell.detail else text


def _row(row: Row) -> str:
    cells = [_cell(cell) for cell in row.cells]
    if row.depth:
        cells[0] = "&nbsp;" * 3 * (row.depth - 1) + "└ " + cells[0]
    if row.highlight:
        cells[0] = f"**first failing** {cells[0]}"
    return "| " + " | ".join(cells) + " |"


def _table(table: Table | None) -> list[str]:
    if table is None or not table.rows:
        return []
    heads = [
        _text(column.heading) + (f" ({_text(column.hint)})" if column.hint else "")
        for column in table.columns
    ]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    remarks = [f"- {_text(row.remark)}" for row in table.rows if row.remark]
    notes = [f"- <sup>{note.mark}</sup> {_text(note.text)}" for note in table.notes]
    below = [*remarks, *notes]
    return [
        f"{_text(table.caption)}",
        "",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join(rules) + " |",
        *[_row(row) for row in table.rows],
        "",
        *([*below, ""] if below else []),
    ]
