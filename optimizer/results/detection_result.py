"""What a validation measures of a detector at one hop."""

from __future__ import annotations

from typing import Literal

from optimizer.results.result_model import Interval, Model

__all__ = ["DetectionMeasures", "ExampleImage", "MarkedBox", "PairedDrop"]


class PairedDrop(Model):
    """Loss of AP for a part of the objects."""

    drop_pp: float
    ci95_pp: Interval
    """Paired 95 % interval."""


class DetectionMeasures(Model):
    """Accuracy and changed detections of one hop."""

    ap: float | None
    """COCO's AP: mean over classes and over IoU 0.5 to 0.95; ``None`` without objects."""
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    """Objects up to 32 x 32 pixels."""
    ap_medium: float | None
    """Objects up to 96 x 96 pixels."""
    ap_large: float | None
    by_class: dict[str, float | None]
    """AP by class name; ``None`` for classes without objects."""
    score_threshold: float
    """The operating threshold, for the numbers below."""
    detections: int
    """Detections with at least this score."""
    lost: int | None = None
    """The reference's detections that this hop does not have (IoU 0.75, same class)."""
    lost_ci95: Interval | None = None
    """Wilson's interval of their share."""
    new: int | None = None
    """Detections of this hop that the reference does not have."""
    new_ci95: Interval | None = None
    lost_vs_parent: int | None = None
    new_vs_parent: int | None = None
    score_change: float | None = None
    """Mean change of the score of a detection that both have."""
    sqnr_scores_db: float | None = None
    """SQNR of the class logits; that of the boxes is the hop's ``sqnr_db``."""
    drop_by_size: dict[str, PairedDrop] = {}
    """Loss of AP against the reference for small, medium and large objects, where there are any."""
    drop_by_class: dict[str, PairedDrop] = {}
    """The same by class name."""
    precision_at_recall: dict[str, list[float]] = {}
    """By IoU (``0.50``, ``0.75``): precision at the recalls 0, 0.01, … 1, mean over classes."""


class MarkedBox(Model):
    """A detection above the threshold."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the image as it is stored."""
    name: str
    """Of the class."""
    score: float
    change: Literal["kept", "lost", "new"]
    """Whether both networks have it, only the reference, or only the other one."""


class ExampleImage(Model):
    """An image with what the reference and the engines find in it."""

    name: str
    width: int
    height: int
    """Size of the image as it is stored, in pixels."""
    jpeg: str
    """The image, made smaller if it is large; base64."""
    reference: list[MarkedBox]
    engines: dict[str, list[MarkedBox]]
    """By hop."""
