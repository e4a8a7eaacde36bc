"""Sweeps over batch, threads and streams, as parts of ``bench.json``."""

from __future__ import annotations

from typing import Literal

from optimizer.results.latency import Latency
from optimizer.results.result_model import EngineStatus, Interval, Model

__all__ = ["Curve", "CurvePoint", "Knee", "LatencyBound", "Setting"]

Percentile = Literal["p50", "p90", "p95", "p99"]


class Setting(Model):
    """One way to call an engine."""

    batch: int
    threads: int
    streams: int = 1


class LatencyBound(Model):
    """What ``--max-latency`` asks for."""

    percentile: Percentile
    max_latency_ms: float


class CurvePoint(Model):
    """One engine at one setting; latency and throughput include copies to and from a device."""

    setting: Setting
    status: EngineStatus
    error: str | None = None
    samples: int = 0
    rounds: int = 0
    images_per_s: float | None = None
    """By the clock, while all streams were at work."""
    images_per_s_ci95: Interval | None = None
    latency_ms: Latency | None = None
    """Of a call from beginning to end."""
    latency_ci95_ms: Interval | None = None
    """Interval of the median."""
    bounded_ci95_ms: tuple[float | None, float | None] | None = None
    """Lower and upper 95 % bound (each one-sided) of the percentile that the bound is on; ``None``
    where there are too few samples for one."""
    holds: bool | None = None
    """Whether the percentile holds the bound; ``None`` if that cannot be said."""
    round_images_per_s: list[float] = []
    """By the clock, of each round."""
    raw_file: str | None = None


class Knee(Model):
    """The batch above which little is gained, for one number of threads and streams.

    It is the smallest batch whose throughput is within 5 % of the highest of the series.
    """

    setting: Setting
    of_best: float
    """Its throughput as a share of the highest."""
    certain: bool
    """Whether the intervals alone tell every smaller batch from it: none of them may reach 95 %."""


class Curve(Model):
    """One engine over the grid of batch, threads and streams."""

    engine: str
    points: list[CurvePoint]
    knees: list[Knee] = []
    """None for a series that still rises by more than 5 % at its largest batch."""
    fastest: Setting | None = None
    """The setting with the highest throughput."""
    bound: LatencyBound | None = None
    best: Setting | None = None
    """The setting with the highest throughput of those that hold the bound."""
