"""LoadGen scenarios, as parts of ``bench.json``. None of them is an MLPerf result."""

from __future__ import annotations

from typing import Literal

from optimizer.results.result_model import EngineStatus, Model

__all__ = ["SCENARIO_LABEL", "ScenarioName", "ScenarioResult", "ServerProbe"]

SCENARIO_LABEL = "LoadGen scenario, not an MLPerf result"
ScenarioName = Literal["single-stream", "multi-stream", "server", "offline"]


class ServerProbe(Model):
    """One rate that was tried in the search of server mode."""

    queries_per_s: float
    """The rate of the Poisson process that queries came at."""
    queries: int
    p99_ms: float
    over_latency: int
    """Queries that took longer than the bound."""
    holds: bool
    """Whether LoadGen found that the bound is held: its early-stopping rule included."""


class ScenarioResult(Model):
    """One engine in one scenario, as LoadGen's detail log tells it."""

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
    """What ``value`` is, in words: every scenario has another one."""
    value: float | None = None
    unit: Literal["ms", "samples/s", "queries/s"] | None = None
    latency_ms: dict[str, float] = {}
    """LoadGen's own percentiles of a query, ``p50`` to ``p99_9``, those that the number of queries
    supports; none for offline, which is one query."""
    timed_p50_ms: float | None = None
    """Single- and multi-stream: the median of the same calls, timed on this side of LoadGen."""
    valid: bool | None = None
    """LoadGen's own verdict on the run by the settings it was given."""
    max_latency_ms: float | None = None
    """Server: the bound on the 99th percentile."""
    probes: list[ServerProbe] = []
    """Server: the rates that were tried, in order."""
    notes: list[str] = []
    """How the run is shorter than MLPerf's rules ask for, and what else to know."""
