"""``search.json``: which layers stay in high precision."""

from __future__ import annotations

from typing import Literal

from optimizer.results.result_model import SCHEMA_VERSION, Model
from optimizer.results.validate_result import ValidateResult

__all__ = ["FrontPoint", "LayerSensitivity", "SearchResult"]


class LayerSensitivity(Model):
    """What one layer costs in accuracy as INT8, and in time as anything else."""

    layer: str
    sqnr_db: float | None
    """Signal to noise of the logits with this layer alone in high precision."""
    gain_db: float | None
    """That, less the signal to noise with every layer in INT8."""
    cost_ms: float
    """Predicted time that keeping it alone adds."""


class FrontPoint(Model):
    """One graph that the search looked at, on images of its own."""

    kept: list[str]
    """Layers in high precision, in graph order."""
    sqnr_db: float | None
    flips: int
    losses: int
    """Images that the FP32 network has right and this graph wrong."""
    gains: int
    expected_flips: float
    """Flips among as many images, from the noise of each on the decisions of all."""
    drop_upper_pp: float
    """Upper end of the 95 % interval of the drop, by counted or expected losses, the larger."""
    predicted_ms: float
    inside: bool
    """Within the budget."""
    dominated: bool
    """Another point is at least as fast and has at least its signal to noise."""


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
    """What was measured, or which constants the model has."""
    int8_ms: float
    high_ms: float
    """Predicted times of one image with every layer in INT8 and in high precision."""
    timed_ms: tuple[float, float, float] | None
    """All-INT8, chosen and FP32 graph timed as wholes; ``None`` by a model, or if none is kept."""
    calibration_images: int
    """For the statistics, the biases, and the ranking of layers."""
    search_images: int
    """For the front; none of them calibrated, and none will judge."""
    sensitivity: list[LayerSensitivity]
    """The most sensitive layer first; empty if the INT8 graph is inside the budget."""
    front: list[FrontPoint]
    """In the order in which they were tried, from all-INT8 on."""
    chosen: int
    """Index in ``front``."""
    finding: str
    """One sentence: what is kept, and what it costs."""
    validation: ValidateResult | None = None
    """The verdict on images that the search never saw; ``None`` before it was judged."""
