"""What is collected of a detector at one hop: its detections, and those that changed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from optimizer.results import Interval
from optimizer.tasks.average_precision import MatchTables
from optimizer.tasks.boxes import Detections, iou_matrix
from optimizer.tasks.tally import Noise

__all__ = ["Changes", "DetectionTally", "changed_detections"]

SAME_BOX_IOU = 0.75
"""From this IoU on, two detections of a class are the same."""


@dataclass
class Changes:
    """Detections above the threshold of two networks on the same images.

    Attributes:
        before, after: Detections of the first and the second network.
        lost, new: Detections that only the first, only the second has.
        score_change: Sum of the changes of score of detections that both have.
    """

    before: int = 0
    after: int = 0
    lost: int = 0
    new: int = 0
    score_change: float = 0.0

    def merge(self, other: Changes) -> None:
        """Add the changes on other images."""
        self.before += other.before
        self.after += other.after
        self.lost += other.lost
        self.new += other.new
        self.score_change += other.score_change


def changed_detections(
    before: Detections, after: Detections
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float]:
    """Match detections of two networks on one image.

    The best pairs are matched first: by IoU, of the same class, each detection once.

    Args:
        before: Detections of the first network above the threshold.
        after: Of the second.

    Returns:
        Which detections of the first are lost, which of the second are new, and the sum of the
        changes of score of the matched ones.
    """
    overlap = iou_matrix(before.boxes, after.boxes)
    overlap[before.classes[:, None] != after.classes[None]] = 0
    lost, new = np.ones(len(before.scores), np.bool_), np.ones(len(after.scores), np.bool_)
    change = 0.0
    while overlap.size:
        first, second = np.unravel_index(int(overlap.argmax()), overlap.shape)
        if overlap[first, second] < SAME_BOX_IOU:
            break
        lost[first] = new[second] = False
        change += float(after.scores[second]) - float(before.scores[first])
        overlap[first], overlap[:, second] = 0, 0
    return lost, new, change


@dataclass
class DetectionTally:
    """One hop; tallies of different images can be merged.

    Attributes:
        detections: By dataset position.
        boxes, scores: Errors of the box values and of the class logits of the compared anchors,
            against the reference.
        boxes_vs_parent: Error of the box values against the parent.
        changes, changes_vs_parent: Changed detections.
        n_vs_parent: Images that were compared with the parent.
        max_abs_diff: Largest difference of a value from the reference's.
        worst: Position of the image with most changed detections, then with that difference.
        tables, tables_of_reference, tables_of_parent: Matches with objects, of this hop and of the
            others on the same images; set when all images are known.
        interval, standard_error: Of the drop in AP, as fractions of one; likewise.
        size_intervals, class_intervals: Of the drops by object size and class, where there are
            objects; likewise.
    """

    detections: dict[int, Detections] = field(default_factory=dict)
    boxes: Noise = field(default_factory=Noise)
    scores: Noise = field(default_factory=Noise)
    boxes_vs_parent: Noise = field(default_factory=Noise)
    changes: Changes = field(default_factory=Changes)
    changes_vs_parent: Changes = field(default_factory=Changes)
    n_vs_parent: int = 0
    max_abs_diff: float = 0.0
    worst: int | None = None
    worst_rank: tuple[int, float] = (0, 0.0)
    tables: MatchTables | None = None
    tables_of_reference: MatchTables | None = None
    tables_of_parent: MatchTables | None = None
    interval: Interval = (0.0, 0.0)
    standard_error: float = 0.0
    size_intervals: dict[str, Interval] = field(default_factory=dict)
    class_intervals: dict[int, Interval] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Images."""
        return len(self.detections)

    def in_order(self) -> list[Detections]:
        """The detections in dataset order."""
        return [self.detections[index] for index in sorted(self.detections)]

    def merge(self, other: DetectionTally) -> None:
        """Add a tally of different images."""
        self.detections |= other.detections
        for name in ("boxes", "scores", "boxes_vs_parent", "changes", "changes_vs_parent"):
            getattr(self, name).merge(getattr(other, name))
        self.n_vs_parent += other.n_vs_parent
        self.max_abs_diff = max(self.max_abs_diff, other.max_abs_diff)
        if other.worst_rank > self.worst_rank:
            self.worst, self.worst_rank = other.worst, other.worst_rank

    @property
    def ap(self) -> float:
        """AP of this hop, NaN without objects."""
        assert self.tables is not None
        return float(self.tables.mean()[0])

    def drop(self, of: MatchTables | None) -> float:
        """Loss of AP against other matches, as a fraction of one."""
        return 0.0 if of is None else float(of.mean()[0]) - self.ap
