"""Detection: average precision, lost and new detections, and a paired bootstrap over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Dataset, ImageDataset, Objects, Preprocessing
from optimizer.errors import DataError, UsageError
from optimizer.models import DetectorSpec
from optimizer.results import DetectionMeasures, ExampleImage, Gates, Hop, PairedDrop, VerdictName
from optimizer.tasks.accuracy_intervals import FIXED, Intervals
from optimizer.tasks.average_precision import (
    MatchTables,
    Resampled,
    drop_interval,
    match_objects,
    resampled,
)
from optimizer.tasks.boxes import BoxReader, Detections
from optimizer.tasks.detection_classes import match_categories
from optimizer.tasks.detection_examples import examples
from optimizer.tasks.detection_predictions import DetectionRecorder
from optimizer.tasks.detection_tally import Changes, DetectionTally, changed_detections
from optimizer.tasks.packed_detections import pack_detections, unpack_detections
from optimizer.tasks.paired_statistics import (
    Paired,
    gate,
    images_needed,
    wilson_interval,
    worst_verdict,
)

__all__ = ["BatchDetections", "Detection"]

_SAMPLED_ANCHORS = 1024
"""Anchors, evenly spaced over all levels, by which raw outputs are compared."""
_UNINFORMATIVE_AP = 0.01
"""A reference below this finds next to nothing: labels or preprocessing are wrong."""
_CURVES = (0.5, 0.75)
"""IoUs of the curves of precision over recall in a result."""
_POWER = 1.96 + 0.84
"""Normal quantiles of a 95 % interval and of a power of 80 %."""


@dataclass(frozen=True)
class BatchDetections:
    """What a network found in one batch.

    Attributes:
        outputs: The raw outputs of some anchors, the same for every network, N x anchors x values
            float32: all of an image would take tens of megabytes.
        detections: One entry per image.
    """

    outputs: NDArray[np.float32]
    detections: list[Detections]


class Detection:
    """Boxes with classes and scores; see `Task`.

    Args:
        spec: Description of the network's outputs.
        preprocessing: The network's preprocessing.
        score_threshold: The score from which detections count as lost or new.
    """

    intervals: ClassVar[Intervals] = FIXED
    name: ClassVar[Literal["classification", "detection"]] = "detection"
    metric: ClassVar[str] = "AP"
    outputs: ClassVar[str] = "outputs"

    def __init__(
        self, spec: DetectorSpec, preprocessing: Preprocessing, score_threshold: float = 0.3
    ) -> None:
        self._reader = BoxReader(spec, preprocessing)
        self._spec, self._preprocessing = spec, preprocessing
        self._threshold = score_threshold
        anchors, _ = spec.output_shape
        count = min(anchors, _SAMPLED_ANCHORS)
        self._sample = np.linspace(0, anchors - 1, count).astype(np.int64)

    def for_gates(self, gates: Gates) -> Detection:
        """See `Task.for_gates`."""
        if gates.max_flips is not None:
            raise UsageError(
                "--max-flips limits changed classes of images, and this network is a detector",
                hint="limit lost detections instead: --max-lost 3%",
            )
        return Detection(self._spec, self._preprocessing, gates.score_threshold)

    def stopping_early(self) -> Detection:
        """See `Task.stopping_early`: the bootstrap holds for one number of images only."""
        raise UsageError(
            "--until-decided needs intervals that hold at every number of images, which AP has not",
            hint="leave it out",
        )

    def match(
        self, dataset: ImageDataset, num_classes: int, classes: Sequence[str] | None
    ) -> ImageDataset:
        """See `Task.match`."""
        if dataset.objects is None:
            raise DataError(
                f"{dataset.name} has one class per image, but the network is a detector",
                hint="give annotated boxes: digits-scenes:test, a COCO file or a YOLO folder",
            )
        return match_categories(dataset, num_classes, classes)

    # --- the pass over the images --------------------------------------------------------------

    def read(
        self, outputs: NDArray[Any], dataset: Dataset, indices: NDArray[np.int64]
    ) -> BatchDetections:
        """See `Task.read`."""
        assert dataset.objects is not None
        sizes = [dataset.objects[int(index)].size for index in indices]
        found = [self._reader.read(o, size) for o, size in zip(outputs, sizes, strict=True)]
        return BatchDetections(np.asarray(outputs[:, self._sample], np.float32), found)

    def pack(self, predictions: Sequence[BatchDetections]) -> dict[str, NDArray[Any]]:
        """See `Task.pack`."""
        found = [detections for batch in predictions for detections in batch.detections]
        outputs = np.concatenate([batch.outputs for batch in predictions])
        return {"outputs": outputs, **pack_detections(found)}

    def unpack(self, arrays: Mapping[str, NDArray[Any]]) -> BatchDetections:
        """See `Task.unpack`."""
        return BatchDetections(arrays["outputs"], unpack_detections(arrays))

    def tally(self) -> DetectionTally:
        """See `Task.tally`."""
        return DetectionTally()

    def add(
        self,
        tally: DetectionTally,
        predictions: BatchDetections,
        dataset: Dataset,
        indices: NDArray[np.int64],
        others: tuple[BatchDetections, BatchDetections | None],
    ) -> None:
        """See `Task.add`."""
        del dataset
        reference, parent = others
        boxes = self._spec.box_values
        tally.boxes.add(reference.outputs[..., :4], predictions.outputs[..., :4])
        tally.scores.add(reference.outputs[..., boxes:], predictions.outputs[..., boxes:])
        difference = np.abs(predictions.outputs - reference.outputs).max(axis=(1, 2))
        tally.max_abs_diff = max(tally.max_abs_diff, float(difference.max()))
        for row, index in enumerate(indices.tolist()):
            found = predictions.detections[row]
            tally.detections[index] = found
            changed = self._count(tally.changes, reference.detections[row], found)
            rank = changed, float(difference[row])
            if rank > tally.worst_rank:
                tally.worst, tally.worst_rank = index, rank
            if parent is not None:
                self._count(tally.changes_vs_parent, parent.detections[row], found)
        if parent is not None:
            tally.n_vs_parent += len(indices)
            tally.boxes_vs_parent.add(parent.outputs[..., :4], predictions.outputs[..., :4])

    def _count(self, changes: Changes, before: Detections, after: Detections) -> int:
        before, after = before.above(self._threshold), after.above(self._threshold)
        lost, new, change = changed_detections(before, after)
        found = Changes(
            len(before.scores), len(after.scores), int(lost.sum()), int(new.sum()), change
        )
        changes.merge(found)
        return found.lost + found.new

    def recorder(self) -> DetectionRecorder:
        """See `Task.recorder`."""
        return DetectionRecorder()

    def check_early(self, reference: DetectionTally, expected: float | None, dataset: str) -> None:
        """See `Task.check_early`: AP needs all images."""

    # --- after the pass ------------------------------------------------------------------------

    def finish(
        self, tallies: Mapping[str, DetectionTally], parents: Mapping[str, str], dataset: Dataset
    ) -> None:
        """See `Task.finish`: matches detections with objects, and resamples images."""
        assert dataset.objects is not None
        first, *others = tallies
        reference = tallies[first]
        for tally in tallies.values():
            tally.tables = self._matches(tally, dataset.objects)
        drawn: dict[int, Resampled] = {}  # of the reference, which all hops share
        for name in others:
            tally, parent = tallies[name], tallies.get(parents[name])
            assert tally.tables is not None
            before = tally.tables_of_reference = self._on_images_of(
                tally, reference, dataset.objects
            )
            if id(before) not in drawn:
                drawn[id(before)] = resampled(before)
            _set_intervals(tally, drawn[id(before)], resampled(tally.tables))
            comparable = parent and parent.detections.keys() == tally.detections.keys()
            tally.tables_of_parent = parent.tables if parent and comparable else None

    def _matches(self, tally: DetectionTally, objects: Sequence[Objects]) -> MatchTables:
        indices = sorted(tally.detections)
        return match_objects(
            [objects[index] for index in indices], tally.in_order(), self._spec.num_classes
        )

    def _on_images_of(
        self, tally: DetectionTally, reference: DetectionTally, objects: Sequence[Objects]
    ) -> MatchTables:
        """The reference's matches on the images of a hop, which may be a sample."""
        if tally.detections.keys() == reference.detections.keys():
            assert reference.tables is not None
            return reference.tables
        part = {index: reference.detections[index] for index in tally.detections}
        return self._matches(DetectionTally(detections=part), objects)

    def check_reference(
        self, reference: DetectionTally, expected: float | None, dataset: str
    ) -> None:
        """See `Task.check_reference`: no detector has a published AP for this preprocessing."""

    def labels_informative(self, reference: DetectionTally, num_classes: int) -> bool:
        """See `Task.labels_informative`: the reference finds some of the objects."""
        del num_classes
        return reference.ap > _UNINFORMATIVE_AP

    def fields(
        self, tally: DetectionTally, dataset: Dataset, *, is_reference: bool
    ) -> dict[str, Any]:
        """See `Task.fields`."""
        changes = tally.changes
        measures = self._accuracy(tally, dataset)
        if is_reference:
            return {"n": tally.n, "detection": DetectionMeasures(**measures)}
        measures |= {
            "lost": changes.lost,
            "lost_ci95": _share_interval(changes.lost, changes.before),
            "new": changes.new,
            "new_ci95": _share_interval(changes.new, changes.after),
            "sqnr_scores_db": tally.scores.db,
        }
        kept = changes.before - changes.lost
        measures["score_change"] = changes.score_change / kept if kept else None
        measures |= self._drops(tally, dataset)
        low, high = tally.interval
        fields: dict[str, Any] = {
            "n": tally.n,
            "drop_pp": 100 * _finite(tally.drop(tally.tables_of_reference)),
            "drop_ci95_pp": (100 * low, 100 * high),
            "sqnr_db": tally.boxes.db,
            "max_abs_diff": tally.max_abs_diff,
            "worst_image": None if tally.worst is None else dataset.image_id(tally.worst),
        }
        if tally.n_vs_parent:
            partly = tally.n_vs_parent < tally.n
            fields["n_vs_parent"] = tally.n_vs_parent if partly else None
            measures["lost_vs_parent"] = tally.changes_vs_parent.lost
            measures["new_vs_parent"] = tally.changes_vs_parent.new
            fields["sqnr_vs_parent_db"] = tally.boxes_vs_parent.db
        return {**fields, "detection": DetectionMeasures(**measures)}

    def _accuracy(self, tally: DetectionTally, dataset: Dataset) -> dict[str, Any]:
        tables = tally.tables
        assert tables is not None
        per_class, names = _by_class(tables), self._names(dataset)
        above = sum(int((d.scores >= self._threshold).sum()) for d in tally.detections.values())
        return {
            "ap": _or_none(tally.ap),
            "ap50": _or_none(float(tables.mean(iou=0.5)[0])),
            "ap75": _or_none(float(tables.mean(iou=0.75)[0])),
            **{
                f"ap_{area}": _or_none(float(tables.mean(area)[0]))
                for area in ("small", "medium", "large")
            },
            "by_class": {
                name: _or_none(float(value)) for name, value in zip(names, per_class, strict=True)
            },
            "score_threshold": self._threshold,
            "detections": above,
            "precision_at_recall": {
                f"{iou:.2f}": [round(float(value), 4) for value in curve]
                for iou in _CURVES
                if np.isfinite(curve := tables.precision_at_recall(iou)).all()
            },
        }

    def _drops(self, tally: DetectionTally, dataset: Dataset) -> dict[str, Any]:
        """Drops by size and by class."""
        before, after = tally.tables_of_reference, tally.tables
        assert before is not None
        assert after is not None
        by_size = {
            area: PairedDrop(
                drop_pp=100 * float(before.mean(area)[0] - after.mean(area)[0]),
                ci95_pp=(100 * low, 100 * high),
            )
            for area, (low, high) in tally.size_intervals.items()
        }
        lost, names = _by_class(before) - _by_class(after), self._names(dataset)
        by_class = {
            names[index]: PairedDrop(drop_pp=100 * lost[index], ci95_pp=(100 * low, 100 * high))
            for index, (low, high) in tally.class_intervals.items()
        }
        return {"drop_by_size": by_size, "drop_by_class": by_class}

    def _names(self, dataset: Dataset) -> tuple[str, ...]:
        return dataset.classes or tuple(str(i) for i in range(self._spec.num_classes))

    def examples(
        self, tallies: Mapping[str, DetectionTally], dataset: ImageDataset
    ) -> list[ExampleImage]:
        """See `Task.examples`: where the detections of the engines changed most."""
        found = {name: tally.detections for name, tally in tallies.items()}
        return examples(found, dataset, self._names(dataset), self._threshold)

    def verdict(
        self, tally: DetectionTally, gates: Gates, *, labels_informative: bool
    ) -> VerdictName:
        """See `Task.verdict`: the paired interval of the drop in AP, Wilson's of lost detections."""
        low, high = tally.interval
        verdict = gate((100 * low, 100 * high), gates.max_drop_pp)
        lost, before = tally.changes.lost, tally.changes.before
        interval = _share_interval(lost, before)
        if not labels_informative and verdict == "pass":
            changed = interval is None or interval[0] > gates.max_drop_pp / 100
            verdict = "inconclusive" if changed else "pass"
        if gates.max_lost is None:
            return verdict
        if interval is None:
            return worst_verdict(verdict, "inconclusive")
        return worst_verdict(verdict, gate(interval, gates.max_lost))

    def images_needed(self, tally: DetectionTally, gates: Gates) -> int | None:
        """See `Task.images_needed`."""
        needed: list[int | None] = []
        low, high = tally.interval
        limit = gates.max_drop_pp / 100
        if gate((low, high), limit) == "inconclusive":
            gap = abs(limit - _finite(tally.drop(tally.tables_of_reference)))
            ratio = math.inf if gap < 1e-9 else _POWER * tally.standard_error / gap
            needed.append(None if math.isinf(ratio) else math.ceil(tally.n * ratio**2))
        before, lost = tally.changes.before, tally.changes.lost
        interval = _share_interval(lost, before)
        limit_lost = gates.max_lost
        if interval and limit_lost is not None and gate(interval, limit_lost) == "inconclusive":
            detections = images_needed(Paired(before, lost, 0), limit_lost)
            per_image = before / tally.n
            needed.append(None if detections is None else math.ceil(detections / per_image))
        sizes = [n for n in needed if n is not None]
        return max(*sizes, tally.n + 1) if sizes and len(sizes) == len(needed) else None

    # --- words ---------------------------------------------------------------------------------

    def net_loss(self, tally: DetectionTally, *, to_parent: bool) -> float:
        """See `Task.net_loss`: AP."""
        return _finite(
            tally.drop(tally.tables_of_parent if to_parent else tally.tables_of_reference)
        )

    def changes(self, tally: DetectionTally, *, to_parent: bool) -> int:
        """See `Task.changes`: lost detections."""
        return (tally.changes_vs_parent if to_parent else tally.changes).lost

    def exceeds_by_drop(self, hop: Hop, gates: Gates) -> bool:
        """See `Task.exceeds_by_drop`."""
        low, _ = hop.drop_ci95_pp or (0.0, 0.0)
        return low > gates.max_drop_pp

    def limits(self, gates: Gates) -> str:
        """See `Task.limits`."""
        if gates.max_lost is None:
            return f"the limit of {gates.max_drop_pp:g} pp"
        lost = f"{100 * gates.max_lost:g} % lost detections"
        return f"the limits of {gates.max_drop_pp:g} pp and {lost}"

    def running(self, tally: DetectionTally) -> str:
        """See `Task.running`: AP needs all images, detections do not."""
        return f"{tally.changes.lost:,} of {tally.changes.before:,} detections lost"

    def drop(self, hop: Hop) -> str:
        """See `Task.drop`."""
        low, high = hop.drop_ci95_pp or (0.0, 0.0)
        found = hop.detection
        assert found is not None
        kept = found.detections - (found.new or 0) + (found.lost or 0)
        return (
            f"AP drop {hop.drop_pp:.2f} pp (95 % interval {low:.2f} to {high:.2f}), "
            f"{found.lost:,} of {kept:,} detections above {found.score_threshold:g} lost, "
            f"{found.new:,} new"
        )

    def significance(self, hop: Hop) -> str:
        """See `Task.significance`: the interval is the test."""
        del hop
        return ""

    def accuracy(self, hop: Hop) -> str | None:
        """See `Task.accuracy`."""
        if hop.detection is None:
            return None
        return "no measurable" if hop.detection.ap is None else f"{hop.detection.ap:.3f}"


def _set_intervals(tally: DetectionTally, before: Resampled, after: Resampled) -> None:
    """Intervals of the drops, from the same draws of both networks."""
    whole = drop_interval(before.mean, after.mean)
    tally.interval, tally.standard_error = whole or ((0.0, 0.0), 0.0)
    sizes = {
        area: drop_interval(before.by_area[area], values) for area, values in after.by_area.items()
    }
    tally.size_intervals = {area: found[0] for area, found in sizes.items() if found}
    classes = zip(before.by_class.T, after.by_class.T, strict=True)
    by_class = {index: drop_interval(*values) for index, values in enumerate(classes)}
    tally.class_intervals = {index: found[0] for index, found in by_class.items() if found}


def _by_class(tables: MatchTables) -> NDArray[np.float64]:
    """AP of each class, NaN without objects."""
    return np.asarray(tables.by_class()[0].mean(axis=1))


def _share_interval(count: int, total: int) -> tuple[float, float] | None:
    return wilson_interval(count, total) if total else None


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
