"""``table.json``: the time of every kind of layer of a network at several widths."""

from __future__ import annotations

from typing import Any, Literal

from optimizer.results.result_model import SCHEMA_VERSION, Interval, Model
from optimizer.tables import Table

__all__ = ["BlockTimes", "LatencyTable", "TableCheck", "TimesAtBatch"]


class BlockTimes(Model):
    """The time of one block at several widths of its inner layers."""

    inner: list[list[int]]
    """Per measured network: output channels of the layers inside of the block."""
    layers_ms: list[list[float]]
    """Per measured network: milliseconds of ``conv1``, ``conv2`` …"""
    rest_ms: float
    """The rest of the block: its shortcut, an addition that is not fused."""
    droppable: bool
    """Whether the block is an identity without its branch."""


class TableCheck(Model):
    """A network whose times the table does not contain, predicted and measured."""

    shares: list[float]
    """Share of the inner channels that are left: of ``conv1``, of ``conv2``."""
    predicted_ms: float
    measured_ms: float
    measured_ci95_ms: Interval | None = None

    @property
    def error(self) -> float:
        """Predicted over measured, minus one."""
        return self.predicted_ms / self.measured_ms - 1


class TimesAtBatch(Model):
    """All times with one batch size."""

    batch: int
    whole_ms: list[float]
    """Time of a call of each measured network, without profiling; the first is the whole network."""
    whole_ci95_ms: list[Interval | None]
    outside_ms: float
    """Stem, head and all that is in no block."""
    blocks: dict[str, BlockTimes]
    check: TableCheck | None = None


class LatencyTable(Model):
    """``table.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["latency-table"] = "latency-table"
    created: str
    source: Literal["measured", "model"]
    """Measured in the engine, or a roofline model."""
    reason: str
    """How it was measured, or why not."""
    arch: str
    widths: dict[str, Any]
    """Of the network that the table is for; see `optimizer.models.Widths`."""
    image_size: int
    engine: str
    precision: str
    device: dict[str, Any]
    """The device that the times are of."""
    threads: int | None = None
    libraries: dict[str, str] = {}
    rounds: int = 0
    batches: list[TimesAtBatch]
    notes: list[str] = []

    def as_table(self) -> Table:
        """One row per measured width and batch size."""
        rows = []
        for at in self.batches:
            for number, (ms, ci95) in enumerate(zip(at.whole_ms, at.whole_ci95_ms, strict=True)):
                first = next(iter(at.blocks.values()))
                share = first.inner[number][0] / first.inner[0][0]
                interval = f"{ci95[0]:.3f} … {ci95[1]:.3f}" if ci95 else "–"
                rows.append((f"{at.batch}", f"{share:.0%}", f"{ms:.3f}", interval))
        caption = (
            f"{self.arch}, {self.engine} {self.precision}, {self.image_size} px, {self.source}"
        )
        return Table(("batch", "inner channels", "ms", "95 % interval"), rows, caption)
