"""Return types of the verbs that write artifacts: the artifact with further results."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from optimizer.artifacts import Artifact
from optimizer.results import Audit, QuantizedTrainingResult, SearchResult

if TYPE_CHECKING:
    from optimizer.precision.int8.halves import ScaleDifference

__all__ = [
    "BuildResult",
    "CalibrateResult",
    "ExportResult",
    "QuantizeResult",
    "TrainResult",
]


@dataclass(frozen=True, kw_only=True)
class _ArtifactResult(Artifact):
    """An artifact with further results."""

    @classmethod
    def of(cls, artifact: Artifact, **results: Any) -> Self:
        """The artifact with further ``results``."""
        shared = {field.name: getattr(artifact, field.name) for field in fields(Artifact)}
        return cls(**shared, **results)


@dataclass(frozen=True, kw_only=True)
class TrainResult(_ArtifactResult):
    """A checkpoint; with ``qat``, an INT8 graph.

    Attributes:
        top1: Accuracy on the held-out images, a fraction; ``None`` without such images.
        ap: COCO's AP of a detector on the held-out images; ``None`` for a classifier.
        ap50: The same at IoU 0.5.
        notes: What the user should know about the training.
        first_process: Whether this process wrote it; false for the others of a distributed training.
        quantized: For an INT8 network, its comparison with the one without training.
    """

    top1: float | None = None
    ap: float | None = None
    ap50: float | None = None
    notes: tuple[str, ...] = ()
    first_process: bool = True
    quantized: QuantizedTrainingResult | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult(_ArtifactResult):
    """An FP32 graph.

    Attributes:
        max_relative_difference: Largest difference from what the model comes from, relative to the
            largest logit; ``None`` if it was not compared.
        compared_with: PyTorch, or TensorFlow for a SavedModel.
        preprocessing_assumed: Whether the preprocessing was assumed because the weights do not
            state it.
    """

    max_relative_difference: float | None = None
    compared_with: str = "PyTorch"
    preprocessing_assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class CalibrateResult(_ArtifactResult):
    """Calibration statistics.

    Attributes:
        halves: How far each scale differs between two halves of the images, largest first; empty
            unless requested.
    """

    halves: tuple[ScaleDifference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuantizeResult(_ArtifactResult):
    """A graph of another precision.

    Attributes:
        search: Result of the search for a mixed graph, with its validation; otherwise ``None``.
    """

    search: SearchResult | None = None


@dataclass(frozen=True, kw_only=True)
class BuildResult(_ArtifactResult):
    """An engine.

    Attributes:
        audit: Whether its layers compute in the requested precision.
        search: Result of the search for a mixed graph, with its validation; otherwise ``None``.
        remarks: For a build from a checkpoint, what the user should know about its weights.
        intermediates: Files that ``save_intermediates`` left.
    """

    audit: Audit
    search: SearchResult | None = None
    remarks: tuple[str, ...] = ()
    intermediates: tuple[Path, ...] = ()
