"""Cells of accuracy that all tasks share: drop and signal-to-noise ratio."""

from __future__ import annotations

from optimizer.reporting.numbers import fixed, interval
from optimizer.reporting.report_model import Cell, Notes
from optimizer.results import Hop

__all__ = ["count_cell", "drop_cell", "places_of", "sqnr_cell"]


def places_of(hop: Hop) -> int:
    """Decimals of accuracies and drops in percent."""
    return 2 if hop.n < 5000 else 3


def drop_cell(hop: Hop, notes: Notes, *, judged: bool = True) -> Cell:
    """The drop with its paired interval.

    Args:
        hop: A hop after the reference.
        notes: Footnotes of the table.
        judged: Whether the verdict is shown by the colour.
    """
    if hop.drop_pp is None:
        return notes.missing("The drop was not recorded.")
    places = places_of(hop)
    return Cell(
        fixed(hop.drop_pp, places, sign="+"),
        value=hop.drop_pp,
        detail=interval(hop.drop_ci95_pp, places, sign="+"),
        bounds=hop.drop_ci95_pp,
        mark=None if hop.drop_ci95_pp else notes.mark("No paired interval was recorded."),
        badge=None if not judged or hop.verdict in (None, "pass") else hop.verdict,
    )


def count_cell(count: int | None, total: int, why: str, notes: Notes) -> Cell:
    """How many of ``total`` changed, or a dash with the reason ``why``."""
    if count is None:
        return notes.missing(why)
    return Cell(f"{count:,}", value=count, detail=f"of {total:,}" if total else None)


def sqnr_cell(sqnr: float | None, changes: int | None, notes: Notes) -> Cell:
    """Signal-to-noise ratio in dB, or a dash with the reason for its absence."""
    if sqnr is not None:
        return Cell(fixed(sqnr, 1), value=sqnr)
    if changes:
        return notes.missing("SQNR was not recorded.")
    return notes.missing("No SQNR: the outputs are identical, or it was not recorded.")
