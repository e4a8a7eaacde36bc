"""``qat.json``: an INT8 network that was trained, against the one that was not."""

from __future__ import annotations

from typing import Literal

from optimizer.results.result_model import SCHEMA_VERSION, Interval, Model
from optimizer.results.validate_result import DatasetInfo

__all__ = ["QuantizedCandidate", "QuantizedTrainingResult"]


class QuantizedCandidate(Model):
    """One INT8 graph on the held-out images, against the FP32 network."""

    top1: float
    top1_ci95: Interval
    flips: int
    """Images whose class differs from the FP32 network's."""
    drop_pp: float
    drop_ci95_pp: Interval
    """Paired 95 % interval of the loss of top-1 against FP32."""
    sqnr_db: float | None
    """SQNR of the logits against FP32's; ``None`` for identical outputs."""


class QuantizedTrainingResult(Model):
    """``qat.json``: which of the two INT8 graphs was kept, and why."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["qat"] = "qat"
    created: str
    target: str
    dataset: DatasetInfo
    """The held-out images."""
    calibration_images: int
    fp32_top1: float
    ptq: QuantizedCandidate
    """Post-training quantization, where the training started."""
    qat: QuantizedCandidate
    top1_lost: int
    """Images that are right with PTQ and wrong with QAT."""
    top1_gained: int
    gain_pp: float
    """Top-1 of QAT minus that of PTQ."""
    gain_ci95_pp: Interval
    top1_p: float
    """Exact McNemar p-value of the difference in top-1."""
    flips_added: int
    """Images that QAT flips and PTQ does not."""
    flips_avoided: int
    flips_p: float
    """Exact McNemar p-value of the difference in flips."""
    kept: Literal["qat", "ptq"]
    reason: str
    """One sentence."""
