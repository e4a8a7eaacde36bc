"""``profile.json``: where the time of an engine goes, and how far from the machine's ceilings."""

from __future__ import annotations

from typing import Any, Literal

from optimizer.results.bench_result import Conditions
from optimizer.results.result_model import SCHEMA_VERSION, EngineStatus, Interval, Model
from optimizer.tables import Table

__all__ = ["BoundBy", "Ceiling", "Ceilings", "EngineProfile", "ProfileResult", "TimedPart"]

BoundBy = Literal["compute", "memory", "overhead"]


class Ceiling(Model):
    """One rate that this machine reached."""

    rate: float
    """Of the fastest round: operations a second (a multiply-add is two), or bytes a second."""
    median: float
    """Of all rounds."""
    rounds: int
    how: str
    """What was computed, by which library."""


class Ceilings(Model):
    """The rates of a roofline, measured with the threads of the run."""

    created: str
    device: dict[str, Any]
    """The machine's fingerprint."""
    threads: int
    libraries: dict[str, str]
    compute: dict[str, Ceiling]
    """Matrix products by the data type of their operands: ``fp32``, ``int8``, ``bf16``."""
    memory: Ceiling
    """Copying arrays that no cache holds; bytes read and bytes written both count."""
    cache: Ceiling
    """Copying arrays that the last cache holds."""
    notes: list[str] = []


class TimedPart(Model):
    """A layer of an engine, or the layers of one residual block together."""

    name: str
    torch_names: list[str] = []
    """PyTorch modules in it; empty for what the engine adds by itself (reorders, conversions)."""
    type: str
    precision: str
    """What it computes in; several joined by ``, `` for a block that mixes them."""
    block: str | None = None
    """Of a layer: its residual block, ``stem`` or ``head``; ``None`` where no module is named."""
    time_ms: float
    """Of one call: the median over rounds."""
    time_ci95_ms: Interval | None = None
    share: float
    """Of the time of all layers."""
    flops: int | None = None
    """Of one call, 2 x MAC of layers with weights; ``None`` where it has none."""
    bytes: int | None = None
    """Weights, inputs and outputs of one call, once each, in the types they have in the engine."""
    roof_ms: float | None = None
    """The least time by the ceilings; ``None`` without them or without its operations or bytes."""
    ceiling: str | None = None
    """The ceiling that sets ``roof_ms``: a data type, ``memory`` or ``cache``."""
    bound: BoundBy | None = None

    @property
    def ceiling_share(self) -> float | None:
        """How much of the ceiling it reaches; one is all of it."""
        return self.roof_ms / self.time_ms if self.roof_ms is not None and self.time_ms else None

    @property
    def flops_per_s(self) -> float | None:
        """The rate it computes at."""
        return 1e3 * self.flops / self.time_ms if self.flops and self.time_ms else None

    @property
    def intensity(self) -> float | None:
        """Operations a byte."""
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
    """Profiled calls of each round."""
    whole_ms: float | None = None
    """A whole call without profiling, in the same process and the same rounds: its median."""
    whole_ci95_ms: Interval | None = None
    layers_ms: float | None = None
    """The sum of the layers."""
    outside_ms: float | None = None
    """``whole_ms`` less ``layers_ms``: not in any layer; negative where profiling costs more."""
    blocks: list[TimedPart] = []
    """In the order in which they run; a layer of no module stands for itself."""
    layers: list[TimedPart] = []
    notes: list[str] = []


class ProfileResult(Model):
    """``profile.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["profile"] = "profile"
    created: str
    device: dict[str, Any]
    """The machine's fingerprint."""
    headline: str
    """What the numbers are, in words."""
    engines: list[EngineProfile]
    ceilings: Ceilings | None = None
    ceilings_note: str | None = None
    """Why some or all engines are held against no ceilings."""
    conditions: Conditions | None = None
    settings: dict[str, Any] = {}

    def as_table(self) -> Table:
        """One row per block of every engine."""
        from optimizer.results.result_tables import profile_table

        tables = [profile_table(engine, engine.blocks) for engine in self.engines]
        rows = [(one.caption, *row) for one in tables for row in one.rows]
        return Table(("engine", *tables[0].columns), rows) if tables else Table(())
