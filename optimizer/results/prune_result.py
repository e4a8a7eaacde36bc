"""``<output>.prune.json``: what was cut from a network, what it saves and what it costs."""

from __future__ import annotations

from typing import Any, Literal

from optimizer.results.result_model import SCHEMA_VERSION, Model
from optimizer.results.validate_result import ValidateResult
from optimizer.tables import Table

__all__ = ["PruneResult", "PruneRound", "PrunedLatency"]


class PrunedLatency(Model):
    """The time of a call before and after, from the latency table."""

    batch: int
    before_ms: float
    after_ms: float

    @property
    def speedup(self) -> float:
        """Before over after."""
        return self.before_ms / self.after_ms


class PruneRound(Model):
    """One round: cut, then tune."""

    widths: dict[str, Any]
    kept_saliency: float
    """Share of the saliency that the cut leaves, a fraction."""
    top1_cut: float
    """Accuracy after the cut, with BatchNorm's statistics estimated again, on images of --data."""
    top1_tuned: float | None
    """Accuracy after the tuning, on the same images, which chose the epoch."""


class PruneResult(Model):
    """``<output>.prune.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["prune"] = "prune"
    created: str
    reference: str
    """The network before the cut."""
    arch: str
    engine: str
    precision: str
    table_source: Literal["measured", "model"]
    table_reason: str
    image_size: int
    """Side of the images that the latency is for, pixels."""
    before: dict[str, Any]
    after: dict[str, Any]
    dropped: list[str]
    """Blocks that are gone."""
    latency: list[PrunedLatency]
    """Empty if operations were limited, not time."""
    gflops: tuple[float, float]
    """Operations per image, 2 x MAC, before and after, in billions."""
    parameters: tuple[int, int]
    rounds: list[PruneRound]
    notes: list[str] = []
    validation: ValidateResult | None = None

    def as_table(self) -> Table:
        """One row per block."""
        rows = []
        for name, widths in self.before.items():
            if name == "stem":
                continue
            after = self.after.get(name)
            left = "dropped" if after is None else " ".join(map(str, after[:-1]))
            rows.append((name, " ".join(map(str, widths[:-1])), left))
        return Table(("block", "inner channels", "after"), rows, self.summary)

    @property
    def summary(self) -> str:
        """One line: what was saved."""
        times = [
            f"{at.before_ms:.3g} to {at.after_ms:.3g} ms at batch {at.batch} ({at.speedup:.2f}x)"
            for at in self.latency
        ]
        before, after = self.gflops
        source = "measured table" if self.table_source == "measured" else "model, not measured"
        parts = [f"{before:.3g} to {after:.3g} GFLOP"]
        if times:
            parts.insert(0, f"{self.engine} {self.precision}, {source}: {', '.join(times)}")
        return "; ".join(parts)
