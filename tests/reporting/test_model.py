from __future__ import annotations

from optimizer.reporting.numbers import DASH
from optimizer.reporting.report_model import SAME, Cell, Column, Notes, Row, Table


def test_marks_are_letters_in_order_and_equal_notes_share_one() -> None:
    notes = Notes()
    marks = [notes.mark(f"reason {i}") for i in range(54)]
    assert marks[:3] + marks[25:28] + marks[51:] == [
        "a",
        "b",
        "c",
        "z",
        "aa",
        "ab",
        "az",
        "ba",
        "bb",
    ]
    assert notes.mark("reason 1") == "b"
    assert len(notes.all()) == 54


def sample() -> Table:
    notes = Notes()
    late, early = notes.missing("late"), notes.missing("early")
    return Table(
        id="t",
        caption="c",
        columns=[Column("A"), Column("B", optional=True), Column("C", "ms", optional=True)],
        rows=[
            Row([Cell("1"), Cell(DASH), early]),
            Row([SAME, Cell(DASH), late]),
            Row([Cell("2"), Cell(DASH), Cell("7", value=7)]),
        ],
        notes=notes.all(),
    )


def test_empty_optional_columns_are_dropped_and_marks_renumbered() -> None:
    table = sample().without_empty_columns()
    assert [column.heading for column in table.columns] == ["A", "C, ms"]
    assert [(note.mark, note.text) for note in table.notes] == [("a", "early"), ("b", "late")]
    assert [row.cells[1].mark for row in table.rows] == ["a", "b", None]


def test_the_footnotes_of_a_dropped_column_are_dropped() -> None:
    assert sample().only(["A"]).notes == []


def test_spans_and_groups() -> None:
    table = sample()
    assert table.spans() == [[2, 1, 1], [0, 1, 1], [1, 1, 1]]
    assert [len(group) for group in table.groups()] == [2, 1]
