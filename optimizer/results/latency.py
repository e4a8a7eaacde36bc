"""Latency percentiles, shared by several results."""

from __future__ import annotations

from optimizer.results.result_model import Model

__all__ = ["Latency"]


class Latency(Model):
    """Latency of one batch in milliseconds; ``None`` for percentiles with too few samples."""

    mean: float
    p50: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None
