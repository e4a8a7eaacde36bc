"""Sweeps over batch, threads and streams, in ``bench.json``."""

from __future__ import annotations

from typing import Literal

from optimizer.results.latency import Latency
from optimizer.results.result_model import EngineStatus, Interval, Model
from optimizer.tables import Table, cell

__all__ = ["Curve", "CurvePoint", "Knee", "LatencyBound", "Setting"]

Percentile = Literal["p50", "p90", "p95", "p99"]


class Setting(Model):
    """The batch size, threads and streams of a measurement."""

    batch: int
    threads: int
    streams: int = 1


class LatencyBound(Model):
    """The limit set by ``--max-latency``."""

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
    """Wall-clock throughput while all streams were running."""
    images_per_s_ci95: Interval | None = None
    latency_ms: Latency | None = None
    """Latency of a whole call."""
    latency_ci95_ms: Interval | None = None
    """Interval of the median."""
    bounded_ci95_ms: tuple[float | None, float | None] | None = None
    """Lower and upper one-sided 95 % bounds of the limited percentile; ``None`` with too few
    samples."""
    holds: bool | None = None
    """Whether the percentile is within the limit; ``None`` if undecided."""
    round_images_per_s: list[float] = []
    """Wall-clock throughput of each round."""
    raw_file: str | None = None


class Knee(Model):
    """The batch size beyond which throughput hardly rises, for fixed threads and streams.

    It is the smallest batch whose throughput is within 5 % of the highest in the series.
    """

    setting: Setting
    of_best: float
    """Its throughput as a share of the highest."""
    certain: bool
    """Whether the intervals exclude that a smaller batch reaches 95 % of the highest."""


class Curve(Model):
    """One engine over the grid of batch, threads and streams."""

    engine: str
    points: list[CurvePoint]
    knees: list[Knee] = []
    """One per series, except those that still rise by more than 5 % at their largest batch."""
    fastest: Setting | None = None
    """The setting with the highest throughput."""
    bound: LatencyBound | None = None
    best: Setting | None = None
    """The setting with the highest throughput within the latency limit."""

    def table(self, marks: list[str]) -> Table:
        """One row per setting of a sweep.

        Args:
            marks: A remark for each point (knee, best setting), or an empty string.
        """
        rows = []
        for point, mark in zip(self.points, marks, strict=True):
            setting, rates, latency = point.setting, point.images_per_s_ci95, point.latency_ms
            rows.append(
                (
                    str(setting.batch),
                    str(setting.threads),
                    str(setting.streams),
                    cell(point.images_per_s, "{:.1f}"),
                    f"{rates[0]:.1f} … {rates[1]:.1f}" if rates else "–",
                    cell(latency.p50 if latency else None, "{:.2f}"),
                    cell(latency.p99 if latency else None, "{:.2f}"),
                    point.error or mark,
                )
            )
        columns = (
            "batch", "threads", "streams", "images/s", "95 % interval", "p50, ms", "p99, ms", "",
        )  # fmt: skip
        return Table(columns, rows)
