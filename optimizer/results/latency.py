"""Latency, as every result that has one states it."""

from __future__ import annotations

from optimizer.results.result_model import Model

__all__ = ["Latency"]


class Latency(Model):
    """Latency of one batch, milliseconds. A percentile that ``n`` cannot support is ``None``."""

    mean: float
    p50: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None
