"""Tables of text, shown by the terminal and by notebooks."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Table", "cell", "facts_table", "visible"]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first column is aligned left, the others right.

    Attributes:
        columns: Headings; all empty for a table without a header.
        rows: Cells; each row has one per column.
        caption: Text above the table; may be empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    caption: str = ""

    def to_html(self) -> str:
        """An HTML table without styles or scripts; every cell is escaped."""
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        head = f"<thead><tr>{head}</tr></thead>" if any(self.columns) else ""
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table>{caption}{head}<tbody>{rows}</tbody></table>"


def cell(value: float | None, template: str) -> str:
    """A number as text, or a dash where there is none."""
    return "–" if value is None else template.format(value)


def facts_table(facts: Sequence[tuple[str, object]], caption: str = "") -> Table:
    """A table with a name and a value per row; values that are ``None`` are left out."""
    rows = [(name, str(value)) for name, value in facts if value is not None]
    return Table(("", ""), rows, caption)


def visible(text: str) -> str:
    r"""The text with control characters written out (``\x1b``); line breaks and tabs are kept.

    Names in a file (classes, layers, images) reach the terminal, which would execute escape
    sequences in them. Characters that change the direction of writing, and halves of surrogate
    pairs, are written out too.
    """
    return "".join(
        character
        if character in "\n\t" or not _executed(character)
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _executed(character: str) -> bool:
    """Whether a terminal acts on a character instead of showing it."""
    return unicodedata.category(character) in {"Cc", "Cs"} or character in _DIRECTIONS
