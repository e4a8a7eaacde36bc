"""What a report asks of a task: words, columns, tables and drawings of its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from optimizer.reporting.classification_view import ClassificationView
from optimizer.reporting.detection_view import DetectionView
from optimizer.reporting.report_model import Cell, Column, Notes, Table
from optimizer.results import Gates, Hop, ValidateResult

__all__ = ["TaskView", "view_of"]


class TaskView(Protocol):
    """One task in a report."""

    @property
    def metric(self) -> str:
        """The measure of accuracy at the start of a sentence: ``Top-1``."""

    @property
    def terms(self) -> str:
        """Template of the definitions that only this task needs."""

    @property
    def details(self) -> str | None:
        """Template that shows `tables` and `drawings`; ``None`` if there are none."""

    @property
    def terminal(self) -> Sequence[str]:
        """The summary's columns that the terminal has room for."""

    @property
    def summary_columns(self) -> Sequence[Column]:
        """Columns of accuracy in the table of all engines."""

    @property
    def hop_columns(self) -> Sequence[Column]:
        """Columns of accuracy in the table of hops."""

    def summary_cells(self, hop: Hop, notes: Notes, *, is_reference: bool) -> list[Cell]:
        """Cells of an engine for `summary_columns`."""

    def hop_cells(self, hop: Hop, notes: Notes) -> list[Cell]:
        """Cells of a hop for `hop_columns`."""

    def accuracy(self, hop: Hop) -> str | None:
        """A hop's accuracy with name and unit: ``top-1 98.52 %``; ``None`` if it is unknown."""

    def sentence(self, hop: Hop, reference: Hop, validated: ValidateResult) -> str:
        """Accuracy of an engine and of the reference; both are known."""

    def changes(self, hop: Hop, validated: ValidateResult) -> str:
        """How many predictions changed."""

    def limits(self, gates: Gates) -> str:
        """The limits of a validation."""

    def tables(self, validated: ValidateResult) -> list[Table]:
        """Tables that only this task has."""

    def drawings(self, validated: ValidateResult) -> Any:
        """What `details` draws; ``None`` if there is nothing to draw."""


_VIEWS: dict[str, TaskView] = {
    "classification": ClassificationView(),
    "detection": DetectionView(),
}


def view_of(validated: ValidateResult | None) -> TaskView:
    """The view of a validation's task; without a validation, that of classification."""
    return _VIEWS["classification" if validated is None else validated.task]
