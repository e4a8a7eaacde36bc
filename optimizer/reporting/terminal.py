"""The terminal summary at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.reporting import open_ends, speed
from optimizer.reporting.join import STATUS_WORDS, EngineRow, engine_rows
from optimizer.reporting.links import Links
from optimizer.reporting.page import VERDICT_WORDS
from optimizer.reporting.report_model import Cell
from optimizer.reporting.task_views import view_of
from optimizer.results import RunResult
from optimizer.tables import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

__all__ = ["render_console"]

_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_SHOWN = (
    "Engine",
    "Precision",
    "Batch",
    "Throughput",
    "Speed-up",
    "p50",
)


def render_console(run: RunResult) -> RenderableType:
    """The verdict, the findings and a narrow version of the main table.

    Names and messages are printed literally, without interpreting rich markup.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = engine_rows(run)
    # Engines that did not run would be rows of dashes; they are listed below the table.
    not_run = [row for row in rows if row.status in {"built-not-run", "unavailable"}]
    ran = [row for row in rows if row not in not_run]
    table = speed.main_table(run, ran or rows, Links())
    table = table.only([*_SHOWN, *view_of(run.validate_).terminal, "Status"])
    shown = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for column in table.columns:
        heading = f"{column.title}\n{column.unit}" if column.unit else column.title
        shown.add_column(Text(heading), justify="right" if column.numeric else "left")
    for row in table.rows:
        shown.add_row(*[_cell(cell) for cell in row.cells])
    lines: list[RenderableType] = [
        Text(visible(run.title), style="bold"),
        Text(f"Verdict: {VERDICT_WORDS[run.verdict]}", style=_STYLES[run.verdict]),
        *[Text(visible(f"- {finding}")) for finding in run.findings],
        Text(),
    ]
    if table.rows:
        lines += [shown, Text()]
    lines += [Text(visible(row.remark), style="yellow") for row in table.rows if row.remark]
    lines += [Text(visible(line), style="yellow") for line in _reasons(not_run if ran else [])]
    lines += [Text(visible(f"{n.mark}  {n.text}"), style="dim") for n in table.notes]
    lines += [Text(f"Open: {question}") for question in open_ends.open_questions(run, rows)]
    return Group(*lines)


def _reasons(rows: Sequence[EngineRow]) -> list[str]:
    """Why engines did not run, one line per reason."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        reason = (row.reasons or ["no reason was recorded"])[0].removeprefix(f"{row.name} ")
        by_reason.setdefault(f"{STATUS_WORDS[row.status]}: {reason}", []).append(row.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _cell(cell: Cell) -> Text:
    from rich.text import Text

    text = Text(visible(cell.text), style=_STYLES.get(cell.badge or "", ""))
    if cell.mark:
        text.append(f" {cell.mark}", style="dim")
    if cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    return text
