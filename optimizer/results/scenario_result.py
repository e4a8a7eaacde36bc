"""LoadGen scenarios in ``bench.json``; they are not MLPerf results."""

from __future__ import annotations

from typing import Literal

from optimizer.results.result_model import EngineStatus, Model

__all__ = ["SCENARIO_LABEL", "ScenarioName", "ScenarioResult", "ServerProbe"]

SCENARIO_LABEL = "LoadGen scenario, not an MLPerf result"
ScenarioName = Literal["single-stream", "multi-stream", "server", "offline"]


class ServerProbe(Model):
    """One rate that the search of the server scenario tried."""

    queries_per_s: float
    """Rate of the Poisson process of the queries."""
    queries: int
    p99_ms: float
    over_latency: int
    """Queries that took longer than the limit."""
    holds: bool
    """Whether the limit is met according to LoadGen, including its early-stopping rule."""


class ScenarioResult(Model):
    """One engine in one scenario, from LoadGen's detail log."""

    label: str = SCENARIO_LABEL
    engine: str
    scenario: ScenarioName
    status: EngineStatus
    error: str | None = None
    loadgen: str | None = None
    """LoadGen's version."""
    threads: int | None = None
    samples_per_query: int = 1
    queries: int = 0
    samples: int = 0
    duration_s: float | None = None
    """Wall time of the test."""
    metric: str | None = None
    """Name of the metric in ``value``; each scenario has its own."""
    value: float | None = None
    unit: Literal["ms", "samples/s", "queries/s"] | None = None
    latency_ms: dict[str, float] = {}
    """LoadGen's query latency percentiles, ``p50`` to ``p99_9``, as far as the number of queries
    supports them; empty for offline, which is one query."""
    timed_p50_ms: float | None = None
    """Single- and multi-stream: the median of the same calls, timed by this package."""
    valid: bool | None = None
    """LoadGen's verdict on the run for its settings."""
    max_latency_ms: float | None = None
    """Server: limit on the 99th percentile."""
    probes: list[ServerProbe] = []
    """Server: the rates that were tried, in order."""
    notes: list[str] = []
    """Deviations from MLPerf's rules, such as a shorter run, and other notes."""
