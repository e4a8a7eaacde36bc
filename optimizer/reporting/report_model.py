"""Tables as data, so that HTML, Markdown and the terminal show the same cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from optimizer.reporting.numbers import DASH
from optimizer.results import Interval

__all__ = ["SAME", "Cell", "Column", "Note", "Notes", "Row", "Table", "verdict_cell"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: The displayed text.
        value: The unrounded number behind ``text``, in the column's unit.
        detail: A second, smaller line: an interval or a remark.
        bounds: The unrounded interval behind ``detail``.
        mark: The footnote mark.
        badge: ``pass``, ``fail``, ``inconclusive`` or ``muted``; selects the highlighting.
        href: Relative link to the file that supports the number.
        code: Whether to use a monospaced font.
        same: Whether the cell above spans this one.
    """

    text: str
    value: float | None = None
    detail: str | None = None
    bounds: Interval | None = None
    mark: str | None = None
    badge: str | None = None
    href: str | None = None
    code: bool = False
    same: bool = False


SAME = Cell("", same=True)


@dataclass(frozen=True)
class Column:
    """One column; ``unit`` is part of its heading."""

    title: str
    unit: str | None = None
    numeric: bool = True
    hint: str | None = None
    """Second line of the heading; explains the second line of the cells."""
    optional: bool = False
    """Whether to omit the column if no row has a value."""

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Note:
    """One footnote."""

    mark: str
    text: str


class Notes:
    """Collects the footnotes of a table; equal texts share a mark."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """The mark of ``text``: a, b, … z, aa, ab …, in order of first use."""
        if text not in self._marks:
            number, letters = len(self._marks) + 1, ""
            while number:
                number, rest = divmod(number - 1, 26)
                letters = chr(ord("a") + rest) + letters
            self._marks[text] = letters
        return self._marks[text]

    def missing(self, why: str, detail: str | None = None) -> Cell:
        """A dash with a footnote that explains why there is no number."""
        return Cell(DASH, detail=detail, mark=self.mark(why))

    def all(self) -> list[Note]:
        """The notes in order."""
        return [Note(mark, text) for text, mark in self._marks.items()]


@dataclass(frozen=True)
class Row:
    """One row; ``remark`` is a sentence below it across the full width."""

    cells: Sequence[Cell]
    remark: str | None = None
    highlight: bool = False
    depth: int = 0
    """Indentation of the first cell: the depth in a tree."""


@dataclass(frozen=True)
class Table:
    """A table with its caption and footnotes."""

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[Note] = field(default_factory=list)

    def spans(self) -> list[list[int]]:
        """Row span of each cell; 0 for a cell covered by the one above."""
        spans = [[1] * len(row.cells) for row in self.rows]
        for j in range(len(self.columns)):
            for i in range(len(self.rows) - 1, 0, -1):
                if self.rows[i].cells[j].same:
                    spans[i - 1][j] += spans[i][j]
                    spans[i][j] = 0
        return spans

    def groups(self) -> list[list[tuple[Row, list[int]]]]:
        """Rows with their spans, grouped by shared spanning cells: one ``tbody`` per group."""
        groups: list[list[tuple[Row, list[int]]]] = []
        for row, spans in zip(self.rows, self.spans(), strict=True):
            if groups and any(cell.same for cell in row.cells):
                groups[-1].append((row, spans))
            else:
                groups.append([(row, spans)])
        return groups

    def without_empty_columns(self) -> Table:
        """Drop optional columns in which no row has a value."""
        return self.keep(
            j
            for j, column in enumerate(self.columns)
            if not column.optional or any(row.cells[j].text != DASH for row in self.rows)
        )

    def only(self, titles: Sequence[str]) -> Table:
        """The columns with these titles."""
        return self.keep(j for j, column in enumerate(self.columns) if column.title in titles)

    def keep(self, columns: Iterable[int]) -> Table:
        """These columns with their footnotes, renumbered in reading order."""
        indices = list(columns)
        texts = {note.mark: note.text for note in self.notes}
        notes = Notes()
        rows = []
        for row in self.rows:
            cells = [row.cells[j] for j in indices]
            cells = [replace(c, mark=notes.mark(texts[c.mark]) if c.mark else None) for c in cells]
            rows.append(replace(row, cells=cells))
        kept = [self.columns[j] for j in indices]
        return replace(self, columns=kept, rows=rows, notes=notes.all())


_GOOD = {"pass", "faster", "equivalent", "ok"}
_BAD = {"fail", "slower", "failed"}


def verdict_cell(verdict: str | None, detail: str | None = None) -> Cell:
    """A verdict, highlighted by a symbol and a colour."""
    if verdict is None:
        return Cell(DASH, detail=detail)
    badge = "pass" if verdict in _GOOD else "fail" if verdict in _BAD else "inconclusive"
    return Cell(verdict, detail=detail, badge=badge)
