"""Accuracy: how much is lost, in which step, and whether the loss is statistically real."""

from optimizer.evaluation.accuracy_comparison import AccuracyComparison, compare
from optimizer.evaluation.chain import Chain
from optimizer.evaluation.consistency import batch_consistency
from optimizer.evaluation.layerwise import layerwise
from optimizer.evaluation.precision_audit import audit, audit_manifest
from optimizer.evaluation.validation import raise_for_verdict, validate
from optimizer.tasks.paired_statistics import (
    Paired,
    drop_interval,
    gate,
    images_needed,
    mcnemar_p,
    sqnr_db,
    wilson_interval,
)

__all__ = [
    "AccuracyComparison",
    "Chain",
    "Paired",
    "audit",
    "audit_manifest",
    "batch_consistency",
    "compare",
    "drop_interval",
    "gate",
    "images_needed",
    "layerwise",
    "mcnemar_p",
    "raise_for_verdict",
    "sqnr_db",
    "validate",
    "wilson_interval",
]
