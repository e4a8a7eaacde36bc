"""What a task decides; everything else treats all tasks alike.

Exporting, precision, engines, measuring speed and artifacts do not know tasks. `evaluation` reads the
outputs of every hop through one of these objects: batch by batch into *predictions*, these into one
*tally* per hop, and the tallies into fields of a result, verdicts and sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Dataset, ImageDataset
from optimizer.results import ExampleImage, Gates, Hop, VerdictName
from optimizer.tasks.accuracy_intervals import Intervals

__all__ = ["PredictionRecord", "Task"]

Array = NDArray[Any]


class PredictionRecord(Protocol):
    """The predictions of several networks on one dataset, collected batch by batch."""

    def start_batch(self, indices: NDArray[np.int64]) -> None:
        """Start a batch of images at these dataset positions."""

    def add(self, hop: str, predictions: Any) -> None:
        """Add the predictions of one hop for the current batch."""

    def forget(self, hop: str) -> None:
        """Drop a failed hop."""

    def merge(self, other: Any) -> None:
        """Add the images of another process."""

    def write(self, path: Path, dataset: ImageDataset, sha256: str) -> None:
        """Write all predictions in dataset order to one file.

        Args:
            path: The file.
            dataset: The images, with the labels that were used.
            sha256: Digest of the images as they were opened.
        """


class Task(Protocol):
    """One task. Predictions and tallies are the task's own types; callers only pass them on."""

    @property
    def intervals(self) -> Intervals:
        """The kind of intervals that judge a hop."""

    @property
    def name(self) -> Literal["classification", "detection"]:
        """The task in results and messages: ``classification``."""

    @property
    def metric(self) -> str:
        """Its measure of accuracy in words: ``top-1``."""

    @property
    def outputs(self) -> str:
        """What a network's outputs are in words: ``logits``."""

    def match(
        self, dataset: ImageDataset, num_classes: int, classes: Sequence[str] | None
    ) -> ImageDataset:
        """The dataset with labels that are indices of the network's classes.

        Args:
            dataset: Labelled images.
            num_classes: Number of the network's classes.
            classes: Their names, or ``None``.

        Raises:
            DataError: The labels are of another task, or do not match the classes.
        """

    def for_gates(self, gates: Gates) -> Task:
        """This task with the settings that belong to the limits.

        Raises:
            UsageError: A limit is set that this task has no measure for.
        """

    def stopping_early(self) -> Task:
        """This task with intervals that hold at every number of images at once.

        Raises:
            UsageError: The task has no such intervals.
        """

    # --- the pass over the images --------------------------------------------------------------

    def read(self, outputs: Array, dataset: Dataset, indices: NDArray[np.int64]) -> Any:
        """Read a network's outputs for the images at these positions as predictions."""

    def pack(self, predictions: Sequence[Any]) -> dict[str, Array]:
        """The predictions of several batches as arrays with one row per image, to be stored."""

    def unpack(self, arrays: Mapping[str, Array]) -> Any:
        """The inverse of `pack`: the predictions of all its batches as those of one."""

    def tally(self) -> Any:
        """Empty sums of one hop; sums of different images can be merged by its ``merge``."""

    def add(
        self,
        tally: Any,
        predictions: Any,
        dataset: Dataset,
        indices: NDArray[np.int64],
        others: tuple[Any, Any | None],
    ) -> None:
        """Add one batch to a hop's tally.

        Args:
            tally: The tally.
            predictions: From `read`.
            dataset: From `match`.
            indices: Positions of the batch's images.
            others: The reference's predictions for these images, and the parent hop's or ``None``.
        """

    def recorder(self) -> PredictionRecord:
        """An empty record of predictions."""

    def check_early(self, reference: Any, expected: float | None, dataset: str) -> None:
        """Stop the pass if the reference is far below its expected accuracy.

        Raises:
            AccuracyGateFailed: It is.
        """

    # --- after the pass ------------------------------------------------------------------------

    def finish(self, tallies: Mapping[str, Any], parents: Mapping[str, str], dataset: Any) -> None:
        """Compute what needs all images of all processes.

        Args:
            tallies: The tallies of hops with results by name, the reference first.
            parents: Name of the parent by hop.
            dataset: From `match`.
        """

    def check_reference(self, reference: Any, expected: float | None, dataset: str) -> None:
        """Compare the reference's accuracy with the expected one.

        Raises:
            AccuracyGateFailed: The reference is significantly worse.
        """

    def labels_informative(self, reference: Any, num_classes: int) -> bool:
        """Whether the reference is better than chance on these labels."""

    def fields(self, tally: Any, dataset: Dataset, *, is_reference: bool) -> dict[str, Any]:
        """The fields of `Hop` that this task measures."""

    def verdict(self, tally: Any, gates: Gates, *, labels_informative: bool) -> VerdictName:
        """Judge one hop by its intervals."""

    def images_needed(self, tally: Any, gates: Gates) -> int | None:
        """Images that would decide an inconclusive hop; ``None`` if no number would."""

    def examples(self, tallies: Mapping[str, Any], dataset: ImageDataset) -> list[ExampleImage]:
        """Images to show in a report; empty if the task shows none.

        Args:
            tallies: Those of the reference, which is the first, and of the engines, by hop.
            dataset: From `match`.
        """

    # --- words ---------------------------------------------------------------------------------

    def net_loss(self, tally: Any, *, to_parent: bool) -> float:
        """Accuracy lost against the reference or the parent, in any unit that adds up."""

    def changes(self, tally: Any, *, to_parent: bool) -> int:
        """Predictions that differ from the reference's or the parent's."""

    def exceeds_by_drop(self, hop: Hop, gates: Gates) -> bool:
        """Whether a failed hop lost too much accuracy, rather than too many predictions."""

    def limits(self, gates: Gates) -> str:
        """The limits in words."""

    def running(self, tally: Any) -> str:
        """The loss so far in a few words, for progress; the tally is not empty."""

    def drop(self, hop: Hop) -> str:
        """A hop's loss in words."""

    def significance(self, hop: Hop) -> str:
        """The paired test of a hop's loss in words; empty if the interval is the test."""

    def accuracy(self, hop: Hop) -> str | None:
        """A hop's accuracy with its unit; ``None`` if it was not measured."""
