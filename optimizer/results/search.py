"""``search.json``: which layers stay in high precision."""

from __future__ import annotations

from typing import Literal

from optimizer.results.result_model import SCHEMA_VERSION, Model
from optimizer.results.validate_result import ValidateResult

__all__ = ["FrontPoint", "LayerSensitivity", "SearchResult"]


class LayerSensitivity(Model):
    """Effect of keeping one layer in high precision on accuracy and time."""

    layer: str
    sqnr_db: float | None
    """SQNR of the logits with only this layer in high precision."""
    gain_db: float | None
    """``sqnr_db`` minus the SQNR with every layer in INT8."""
    cost_ms: float
    """Predicted additional time."""


class FrontPoint(Model):
    """One graph that the search evaluated on its search images."""

    kept: list[str]
    """Layers in high precision, in graph order."""
    sqnr_db: float | None
    flips: int
    """Images that change class; of a detector, lost and new detections."""
    losses: int
    """Images that the FP32 network classifies correctly and this graph does not; of a detector, lost
    detections."""
    gains: int
    expected_flips: float
    """Expected flips among the same number of images, from the noise and the decision margins."""
    drop_upper_pp: float
    """Upper end of the 95 % interval of the drop, by counted or expected losses, the larger."""
    predicted_ms: float
    inside: bool
    """Whether the drop is within the budget."""
    dominated: bool
    """Whether another point is at least as fast and has at least the same SQNR."""


class SearchResult(Model):
    """``search.json``: which layers stay in high precision, and why."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["search"] = "search"
    created: str
    graph: str
    target: str
    max_drop_pp: float
    cost_source: Literal["measured", "model"]
    cost_reason: str
    """What was measured, or the constants of the model."""
    int8_ms: float
    high_ms: float
    """Predicted time per image with every layer in INT8, and in high precision."""
    timed_ms: tuple[float, float, float] | None
    """Measured times of the all-INT8, chosen and FP32 graphs; ``None`` if costs come from the
    model, or if no layer is kept."""
    calibration_images: int
    """Images for the statistics, the bias correction and the ranking of layers."""
    search_images: int
    """Images for the front; not used for calibration or validation."""
    sensitivity: list[LayerSensitivity]
    """Most sensitive layer first; empty if the INT8 graph is within the budget."""
    front: list[FrontPoint]
    """In the order in which they were tried, starting with all-INT8."""
    chosen: int
    """Index in ``front``."""
    finding: str
    """One sentence: which layers are kept, and the cost."""
    validation: ValidateResult | None = None
    """Validation on images that the search did not use; ``None`` if not validated."""
