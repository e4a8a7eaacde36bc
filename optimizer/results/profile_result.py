"""``profile.json``: time per layer, and the machine's ceilings."""

from __future__ import annotations

from typing import Any, Literal

from optimizer.results.bench_result import Conditions
from optimizer.results.result_model import SCHEMA_VERSION, EngineStatus, Interval, Model
from optimizer.tables import Table

__all__ = ["BoundBy", "Ceiling", "Ceilings", "EngineProfile", "ProfileResult", "TimedPart"]

BoundBy = Literal["compute", "memory", "overhead"]


class Ceiling(Model):
    """A rate measured on this machine."""

    rate: float
    """Fastest round: operations per second (a multiply-add counts as two), or bytes per second."""
    median: float
    """Median over the rounds."""
    rounds: int
    how: str
    """The computation and the library."""


class Ceilings(Model):
    """The ceilings of a roofline, measured with the threads of the run."""

    created: str
    device: dict[str, Any]
    """The machine's fingerprint."""
    threads: int
    libraries: dict[str, str]
    compute: dict[str, Ceiling]
    """Matrix products by data type of the operands: ``fp32``, ``int8``, ``bf16``."""
    memory: Ceiling
    """Copying arrays larger than the caches; bytes read and written both count."""
    cache: Ceiling
    """Copying arrays that fit into the last-level cache."""
    notes: list[str] = []


class TimedPart(Model):
    """A layer of an engine, or the layers of one residual block together."""

    name: str
    torch_names: list[str] = []
    """PyTorch modules in it; empty for layers that the engine adds (reorders, conversions)."""
    type: str
    precision: str
    """Compute precision; joined by ``, `` for a block that mixes several."""
    block: str | None = None
    """Residual block of a layer, ``stem`` or ``head``; ``None`` if it names no module."""
    time_ms: float
    """Time per call, median over rounds."""
    time_ci95_ms: Interval | None = None
    share: float
    """Share of the time of all layers."""
    flops: int | None = None
    """Operations per call, 2 x MAC of layers with weights; ``None`` if it has none."""
    bytes: int | None = None
    """Weights, inputs and outputs per call, counted once each, in the engine's data types."""
    roof_ms: float | None = None
    """The shortest time that the ceilings allow; ``None`` without ceilings, operations or bytes."""
    ceiling: str | None = None
    """The ceiling that determines ``roof_ms``: a data type, ``memory`` or ``cache``."""
    bound: BoundBy | None = None

    @property
    def ceiling_share(self) -> float | None:
        """Share of the ceiling that is reached, a fraction of one."""
        return self.roof_ms / self.time_ms if self.roof_ms is not None and self.time_ms else None

    @property
    def flops_per_s(self) -> float | None:
        """Operations per second."""
        return 1e3 * self.flops / self.time_ms if self.flops and self.time_ms else None

    @property
    def intensity(self) -> float | None:
        """Arithmetic intensity: operations per byte."""
        return self.flops / self.bytes if self.flops and self.bytes else None


class EngineProfile(Model):
    """One engine, layer by layer and block by block."""

    name: str
    file: str
    backend: str
    precision: str
    status: EngineStatus = "ok"
    error: str | None = None
    batch: int
    image_size: int | None = None
    threads: int | None = None
    rounds: int = 0
    calls: int = 0
    """Profiled calls per round."""
    whole_ms: float | None = None
    """Median time of a whole call without profiling, in the same process and rounds."""
    whole_ci95_ms: Interval | None = None
    layers_ms: float | None = None
    """Sum over the layers."""
    outside_ms: float | None = None
    """``whole_ms`` minus ``layers_ms``: time outside the layers; negative if profiling costs
    more."""
    blocks: list[TimedPart] = []
    """In execution order; a layer that names no module is listed by itself."""
    layers: list[TimedPart] = []
    notes: list[str] = []

    def table(self, parts: list[TimedPart]) -> Table:
        """One row per layer or block.

        Args:
            parts: The engine's `layers` or `blocks`.
        """
        rows = []
        for part in parts:
            interval, rate, share = part.time_ci95_ms, part.flops_per_s, part.ceiling_share
            rows.append(
                (
                    part.name,
                    part.precision,
                    f"{part.time_ms:.3f}",
                    f"{interval[0]:.3f} … {interval[1]:.3f}" if interval else "–",
                    f"{part.share:.1%}",
                    f"{rate / 1e9:.1f}" if rate else "–",
                    f"{share:.0%} of {part.ceiling}" if share is not None else "–",
                    part.bound or "–",
                )
            )
        columns = (
            "", "computes in", "ms", "95 % interval", "share", "GFLOP/s", "of ceiling", "bound by",
        )  # fmt: skip
        caption = f"{self.name}, batch {self.batch}, {self.threads} threads"
        return Table(columns, rows, caption)


class ProfileResult(Model):
    """``profile.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["profile"] = "profile"
    created: str
    device: dict[str, Any]
    """The machine's fingerprint."""
    headline: str
    """What the numbers measure."""
    engines: list[EngineProfile]
    ceilings: Ceilings | None = None
    ceilings_note: str | None = None
    """Why some or all engines are not compared with ceilings."""
    conditions: Conditions | None = None
    settings: dict[str, Any] = {}

    def as_table(self) -> Table:
        """One row per block of every engine."""
        tables = [engine.table(engine.blocks) for engine in self.engines]
        rows = [(one.caption, *row) for one in tables for row in one.rows]
        return Table(("engine", *tables[0].columns), rows) if tables else Table(())
