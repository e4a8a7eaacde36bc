"""How a report shows the accuracy of detectors: AP, lost and new detections, images with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from optimizer.reporting.accuracy_cells import count_cell, drop_cell, sqnr_cell
from optimizer.reporting.charts import FRAME, Axis
from optimizer.reporting.numbers import fixed, interval, significant
from optimizer.reporting.report_model import Cell, Column, Notes, Row, Table
from optimizer.results import (
    DetectionMeasures,
    ExampleImage,
    Gates,
    Hop,
    MarkedBox,
    PairedDrop,
    ValidateResult,
)

__all__ = ["DetectionDrawings", "DetectionView", "ExamplePanel", "PrecisionChart"]

_NOT_COUNTED = "Changed detections were not counted."
_CLASSES = 20
"""Classes in a table; of more, those that lose most."""
_, _, _LEFT, _RIGHT, _TOP, _BOTTOM = FRAME


@dataclass(frozen=True)
class ExamplePanel:
    """One image as one network sees it.

    Attributes:
        title: Of the panel.
        boxes: What is drawn, lost and new detections last.
        text: What changed, in words.
    """

    title: str
    boxes: Sequence[MarkedBox]
    text: str


@dataclass(frozen=True)
class Example:
    """One image with its panels.

    Attributes:
        image: The image.
        panels: The reference, and the engines that differ from it.
        unchanged: Engines that have the reference's detections.
    """

    image: ExampleImage
    panels: Sequence[ExamplePanel]
    unchanged: Sequence[str]


@dataclass(frozen=True)
class PrecisionChart:
    """Precision over recall of one engine beside the reference, in a drawing of size `FRAME`.

    Attributes:
        name: The engine.
        lines: Name of the network and the IoU, points of the line, and the number of its colour.
        x_ticks, y_ticks: Position and text of each tick.
    """

    name: str
    lines: Sequence[tuple[str, str, int]]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class DetectionDrawings:
    """What the report draws of a detector."""

    examples: Sequence[Example]
    curves: Sequence[PrecisionChart]
    threshold: str


class DetectionView:
    """See `optimizer.reporting.task_views.TaskView`."""

    metric: ClassVar[str] = "AP"
    terms: ClassVar[str] = "detection_terms.html.j2"
    details: ClassVar[str | None] = "detection_details.html.j2"
    terminal: ClassVar[Sequence[str]] = ("Drop", "Lost", "New")
    summary_columns: ClassVar[Sequence[Column]] = (
        Column("AP"),
        Column("Drop", "pp", hint="paired 95 %"),
        Column("Lost", "detections"),
        Column("New", "detections"),
        Column("SQNR of the boxes", "dB"),
    )
    hop_columns: ClassVar[Sequence[Column]] = (
        Column("SQNR vs previous hop", "dB", hint="boxes"),
        Column("Changed vs previous hop", "detections", hint="lost, new"),
        Column("SQNR vs reference", "dB", hint="boxes"),
        Column("SQNR vs reference", "dB", hint="class logits"),
        Column("Lost", "detections"),
        Column("New", "detections"),
        Column("Change of score", hint="mean"),
        Column("AP"),
        Column("AP50"),
        Column("AP75"),
        Column("Drop", "pp", hint="paired 95 %"),
        Column("Largest difference", hint="of an output"),
    )

    def summary_cells(self, hop: Hop, notes: Notes, *, is_reference: bool) -> list[Cell]:
        """See `TaskView.summary_cells`."""
        found = hop.detection
        ap = _ap_cell(found.ap if found else None, notes)
        if is_reference:
            noise = notes.missing("This is the reference: there is no noise to measure.")
            zero = Cell("0", value=0)
            return [ap, Cell("0", value=0, detail="reference"), zero, zero, noise]
        return [ap, drop_cell(hop, notes), *_changed_cells(found, notes), _noise(hop, notes)]

    def hop_cells(self, hop: Hop, notes: Notes) -> list[Cell]:
        """See `TaskView.hop_cells`."""
        found = hop.detection
        values = (found.ap, found.ap50, found.ap75) if found else (None,) * 3
        aps = [_ap_cell(value, notes) for value in values]
        if hop.parent is None:
            missing = notes.missing("This is the reference that all other hops are compared with.")
            return [*([missing] * 7), *aps, *([missing] * 2)]
        assert found is not None
        before = notes.missing("Not compared with the hop before it.")
        if found.lost_vs_parent is not None and found.new_vs_parent is not None:
            changed = found.lost_vs_parent + found.new_vs_parent
            detail = f"{found.lost_vs_parent:,} lost, {found.new_vs_parent:,} new"
            before = Cell(f"{changed:,}", value=changed, detail=detail if changed else None)
        change = notes.missing("No detection is in both.")
        if found.score_change is not None:
            change = Cell(fixed(found.score_change, 4, sign="+"), value=found.score_change)
        return [
            sqnr_cell(hop.sqnr_vs_parent_db, found.lost_vs_parent, notes),
            before,
            _noise(hop, notes),
            sqnr_cell(found.sqnr_scores_db, found.lost, notes),
            *_changed_cells(found, notes),
            change,
            *aps,
            drop_cell(hop, notes, judged=False),
            Cell(significant(hop.max_abs_diff), value=hop.max_abs_diff),
        ]

    def accuracy(self, hop: Hop) -> str | None:
        """See `TaskView.accuracy`."""
        ap = hop.detection.ap if hop.detection else None
        return None if ap is None else f"AP {ap:.3f}"

    def sentence(self, hop: Hop, reference: Hop, validated: ValidateResult) -> str:
        """See `TaskView.sentence`."""
        return (
            f"{hop.name} has {self.accuracy(hop)} on {validated.dataset.n} images of "
            f"{validated.dataset.name}, the reference {self.accuracy(reference)}"
        )

    def changes(self, hop: Hop, validated: ValidateResult) -> str:
        """See `TaskView.changes`."""
        found, threshold = hop.detection, validated.gates.score_threshold
        assert found is not None
        return (
            f"{found.lost or 0} of {_before(found)} detections above a score of {threshold:g} were "
            f"lost, {found.new or 0} are new"
        )

    def limits(self, gates: Gates) -> str:
        """See `TaskView.limits`."""
        text = f"drop of at most {gates.max_drop_pp:g} pp of AP"
        if gates.max_lost is not None:
            text += f", at most {gates.max_lost * 100:g} % of the detections lost"
        return f"{text}; detections count from a score of {gates.score_threshold:g}"

    def tables(self, validated: ValidateResult) -> list[Table]:
        """See `TaskView.tables`."""
        return [table for make in (_parts, _reading) if (table := make(validated)) is not None]

    def drawings(self, validated: ValidateResult) -> DetectionDrawings | None:
        """See `TaskView.drawings`."""
        images = [_example(image) for image in validated.examples]
        curves = _curves(validated)
        if not images and not curves:
            return None
        return DetectionDrawings(images, curves, f"{validated.gates.score_threshold:g}")


# --- cells -------------------------------------------------------------------------------------


def _ap_cell(value: float | None, notes: Notes) -> Cell:
    if value is None:
        return notes.missing("There are no such objects, or AP was not measured.")
    return Cell(fixed(value, 3), value=value)


def _before(found: DetectionMeasures) -> int:
    """Detections of the reference above the threshold on the same images."""
    return found.detections - (found.new or 0) + (found.lost or 0)


def _changed_cells(found: DetectionMeasures | None, notes: Notes) -> list[Cell]:
    if found is None:
        return [notes.missing(_NOT_COUNTED)] * 2
    lost = count_cell(found.lost, _before(found), _NOT_COUNTED, notes)
    return [lost, count_cell(found.new, found.detections, _NOT_COUNTED, notes)]


def _noise(hop: Hop, notes: Notes) -> Cell:
    return sqnr_cell(hop.sqnr_db, hop.detection.lost if hop.detection else None, notes)


# --- tables ------------------------------------------------------------------------------------


def _judged(validated: ValidateResult) -> tuple[DetectionMeasures | None, list[Hop]]:
    """The reference's measures, and the ends of all chains that were measured."""
    measured = [hop for hop in validated.hops if hop.detection is not None]
    parents = {hop.parent for hop in measured}
    reference = next((hop.detection for hop in measured if hop.parent is None), None)
    ends = [hop for hop in measured if hop.parent is not None and hop.name not in parents]
    return reference, ends


def _parts(validated: ValidateResult) -> Table | None:
    """AP of the reference by size and class, and what each engine loses there."""
    reference, ends = _judged(validated)
    if reference is None or not ends:
        return None
    notes, rows = Notes(), []
    for size in ("small", "medium", "large"):
        drops = [_measures(hop).drop_by_size.get(size) for hop in ends]
        ap = _ap_cell(getattr(reference, f"ap_{size}"), notes)
        rows.append(Row([Cell(f"{size} objects"), ap, *(_part_cell(d, notes) for d in drops)]))
    classes = [name for name, ap in reference.by_class.items() if ap is not None]
    worst = sorted(classes, key=lambda name: -_largest_drop(name, ends))[:_CLASSES]
    for name in [name for name in classes if name in worst]:
        drops = [_measures(hop).drop_by_class.get(name) for hop in ends]
        ap = _ap_cell(reference.by_class[name], notes)
        rows.append(Row([Cell(f"class {name}"), ap, *(_part_cell(d, notes) for d in drops)]))
    left_out = len(classes) - len(worst)
    some = f" Of {len(classes)} classes, the {_CLASSES} that lose most." if left_out else ""
    return Table(
        id="parts",
        caption="AP of the reference by object size and class, and the drop of each engine. Sizes "
        f"are those of COCO: up to 32², up to 96², and larger, in pixels of the image.{some}",
        columns=[
            Column("Objects", numeric=False),
            Column("Reference", hint="AP"),
            *[Column(hop.name, "pp", hint="drop, paired 95 %") for hop in ends],
        ],
        rows=rows,
        notes=notes.all(),
    )


def _measures(hop: Hop) -> DetectionMeasures:
    assert hop.detection is not None
    return hop.detection


def _largest_drop(name: str, ends: Sequence[Hop]) -> float:
    drops = [_measures(hop).drop_by_class.get(name) for hop in ends]
    return max((drop.drop_pp for drop in drops if drop is not None), default=0.0)


def _part_cell(drop: PairedDrop | None, notes: Notes) -> Cell:
    if drop is None:
        return notes.missing("There are no such objects, or the drop was not measured.")
    return Cell(
        fixed(drop.drop_pp, 2, sign="+"),
        value=drop.drop_pp,
        detail=interval(drop.ci95_pp, 2, sign="+"),
        bounds=drop.ci95_pp,
    )


def _reading(validated: ValidateResult) -> Table | None:
    """Time of the post-processing of each hop."""
    timing = validated.timing
    if timing is None or not timing.reading_cpu_s:
        return None
    rows = []
    for hop in validated.hops:
        images = timing.images_computed.get(hop.name, 0)
        if not images or hop.name not in timing.reading_cpu_s:
            continue
        reading = 1e3 * timing.reading_cpu_s[hop.name] / images
        rows.append(
            Row(
                [
                    Cell(hop.name),
                    Cell(f"{images:,}", value=images),
                    Cell(significant(reading), value=reading),
                ]
            )
        )
    return (
        Table(
            id="reading",
            caption="Post-processing: decoding, selection of candidates and non-maximum suppression on the "
            "host, one function for all engines. It is no part of the speed of an engine.",
            columns=[
                Column("Hop", numeric=False),
                Column("Images"),
                Column("CPU time", "ms per image"),
            ],
            rows=rows,
        )
        if rows
        else None
    )


# --- drawings ----------------------------------------------------------------------------------


def _example(image: ExampleImage) -> Example:
    panels = [ExamplePanel("Reference", image.reference, f"{len(image.reference)} detections")]
    unchanged = []
    order = {"kept": 0, "new": 1, "lost": 2}
    for name, boxes in image.engines.items():
        lost, new = (sum(box.change == kind for box in boxes) for kind in ("lost", "new"))
        if not lost and not new:
            unchanged.append(name)
            continue
        text = ", ".join(f"{n} {word}" for n, word in ((lost, "lost"), (new, "new")) if n)
        drawn = sorted(boxes, key=lambda box: order[box.change])
        panels.append(ExamplePanel(name, drawn, text))
    return Example(image, panels, unchanged)


def _curves(validated: ValidateResult) -> list[PrecisionChart]:
    reference, ends = _judged(validated)
    if reference is None:
        return []
    axis = Axis.over(0, 1)
    ticks = axis.labels()
    charts = []
    for hop in ends:
        lines = []
        networks = ((reference, "reference", 5), (_measures(hop), hop.name, 0))
        for number, (measures, name, color) in enumerate(networks):
            for offset, (iou, curve) in enumerate(measures.precision_at_recall.items()):
                label = f"{name}, IoU {iou}"
                lines.append((label, _points(curve), color + (offset if number else -offset)))
        if lines:
            charts.append(
                PrecisionChart(
                    name=hop.name,
                    lines=lines,
                    x_ticks=[(round(_x(at), 1), text) for at, text in ticks],
                    y_ticks=[(round(_y(at), 1), text) for at, text in ticks],
                )
            )
    return charts


def _points(curve: Sequence[float]) -> str:
    last = max(1, len(curve) - 1)
    return " ".join(f"{_x(100 * i / last):.1f},{_y(100 * v):.1f}" for i, v in enumerate(curve))


def _x(percent: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * percent / 100


def _y(percent: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * percent / 100
