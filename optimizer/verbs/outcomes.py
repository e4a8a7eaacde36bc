"""What verbs that make files return: the artifact, and what was found out on the way."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from optimizer.artifacts import Artifact
from optimizer.results import Audit, SearchResult

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
class _Made(Artifact):
    """An artifact that carries more than its file."""

    @classmethod
    def of(cls, made: Artifact, **more: Any) -> Self:
        """The artifact with ``more``."""
        own = {field.name: getattr(made, field.name) for field in fields(Artifact)}
        return cls(**own, **more)


@dataclass(frozen=True, kw_only=True)
class TrainResult(_Made):
    """A checkpoint.

    Attributes:
        top1: Accuracy on the held-out images, a fraction; ``None`` without such images.
    """

    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult(_Made):
    """An FP32 graph.

    Attributes:
        max_relative_difference: Largest difference from PyTorch, relative to the largest logit.
        preprocessing_assumed: Whether the weights came without their preprocessing.
    """

    max_relative_difference: float
    preprocessing_assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class CalibrateResult(_Made):
    """Calibration statistics.

    Attributes:
        halves: How far each scale moves between two halves of the images, the largest first; empty
            unless it was requested.
    """

    halves: tuple[ScaleDifference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuantizeResult(_Made):
    """An explicit graph.

    Attributes:
        search: What the search for a mixed graph found, with its validation; else ``None``.
    """

    search: SearchResult | None = None


@dataclass(frozen=True, kw_only=True)
class BuildResult(_Made):
    """An engine.

    Attributes:
        audit: Whether it computes what was requested, by its own layer list.
        search: What the search for a mixed graph found, with its validation; else ``None``.
    """

    audit: Audit
    search: SearchResult | None = None
