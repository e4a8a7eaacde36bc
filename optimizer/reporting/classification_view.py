"""How a report shows the accuracy of classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from optimizer.reporting.accuracy_cells import count_cell, drop_cell, places_of, sqnr_cell
from optimizer.reporting.numbers import fixed, interval, percent, significant
from optimizer.reporting.report_model import Cell, Column, Notes, Table
from optimizer.results import Gates, Hop, Interval, ValidateResult

__all__ = ["ClassificationView"]

_NO_FLIPS = "Flips were not counted."


class ClassificationView:
    """See `optimizer.reporting.task_views.TaskView`."""

    metric: ClassVar[str] = "Top-1"
    terms: ClassVar[str] = "classification_terms.html.j2"
    details: ClassVar[str | None] = None
    terminal: ClassVar[Sequence[str]] = ("Drop", "Flips")
    summary_columns: ClassVar[Sequence[Column]] = (
        Column("Top-1", "%"),
        Column("Drop", "pp", hint="paired 95 %"),
        Column("Flips", "images"),
        Column("SQNR", "dB"),
    )
    hop_columns: ClassVar[Sequence[Column]] = (
        Column("SQNR vs previous hop", "dB"),
        Column("Flips vs previous hop", "images"),
        Column("SQNR vs reference", "dB"),
        Column("Flips vs reference", "images"),
        Column("Top-1", "%", hint="95 % interval"),
        Column("Drop", "pp", hint="paired 95 %"),
        Column("McNemar p"),
        Column("Largest difference", hint="of a logit"),
    )

    def summary_cells(self, hop: Hop, notes: Notes, *, is_reference: bool) -> list[Cell]:
        """See `TaskView.summary_cells`."""
        if hop.top1 is None:
            top1 = notes.missing("Top-1 was not recorded.")
        else:
            top1 = Cell(percent(hop.top1, places_of(hop)), value=hop.top1 * 100)
        if is_reference:
            noise = notes.missing("This is the reference: there is no noise to measure.")
            return [top1, Cell("0", value=0, detail="reference"), Cell("0", value=0), noise]
        return [
            top1,
            drop_cell(hop, notes),
            count_cell(hop.flips, hop.n, _NO_FLIPS, notes),
            sqnr_cell(hop.sqnr_db, hop.flips, notes),
        ]

    def hop_cells(self, hop: Hop, notes: Notes) -> list[Cell]:
        """See `TaskView.hop_cells`."""
        places = places_of(hop)
        top1 = Cell(
            percent(hop.top1, places),
            value=None if hop.top1 is None else hop.top1 * 100,
            detail=interval(_times100(hop.top1_ci95), places),
            bounds=_times100(hop.top1_ci95),
        )
        if hop.parent is None:
            missing = notes.missing("This is the reference that all other hops are compared with.")
            return [*([missing] * 4), top1, *([missing] * 3)]
        return [
            sqnr_cell(hop.sqnr_vs_parent_db, hop.flips_vs_parent, notes),
            count_cell(hop.flips_vs_parent, hop.n, _NO_FLIPS, notes),
            sqnr_cell(hop.sqnr_db, hop.flips, notes),
            count_cell(hop.flips, hop.n, _NO_FLIPS, notes),
            top1,
            Cell(
                fixed(hop.drop_pp, places, sign="+"),
                value=hop.drop_pp,
                detail=interval(hop.drop_ci95_pp, places, sign="+"),
                bounds=hop.drop_ci95_pp,
            ),
            Cell(significant(hop.mcnemar_p), value=hop.mcnemar_p),
            Cell(significant(hop.max_abs_diff), value=hop.max_abs_diff),
        ]

    def accuracy(self, hop: Hop) -> str | None:
        """See `TaskView.accuracy`."""
        return None if hop.top1 is None else f"top-1 {percent(hop.top1, places_of(hop))} %"

    def sentence(self, hop: Hop, reference: Hop, validated: ValidateResult) -> str:
        """See `TaskView.sentence`."""
        assert hop.top1 is not None
        assert reference.top1 is not None
        return (
            f"{hop.name} has {100 * hop.top1:.2f} % top-1 on {validated.dataset.n} images of "
            f"{validated.dataset.name}, the reference {100 * reference.top1:.2f} %"
        )

    def changes(self, hop: Hop, validated: ValidateResult) -> str:
        """See `TaskView.changes`."""
        return f"{hop.flips} of {validated.dataset.n} predictions changed"

    def limits(self, gates: Gates) -> str:
        """See `TaskView.limits`."""
        text = f"drop of at most {gates.max_drop_pp:g} pp"
        if gates.max_flips is not None:
            text += f", flips of at most {gates.max_flips * 100:g} % of the images"
        return text

    def tables(self, validated: ValidateResult) -> list[Table]:
        """See `TaskView.tables`."""
        del validated
        return []

    def drawings(self, validated: ValidateResult) -> None:
        """See `TaskView.drawings`."""
        del validated


def _times100(bounds: Interval | None) -> Interval | None:
    return None if bounds is None else (bounds[0] * 100, bounds[1] * 100)
