"""``bench.json``: latency and throughput."""

from __future__ import annotations

from typing import Any, Literal

from optimizer.results.curve_result import Curve
from optimizer.results.latency import Latency
from optimizer.results.result_model import (
    SCHEMA_VERSION,
    EngineStatus,
    Interval,
    Model,
    VerdictName,
)
from optimizer.results.scenario_result import ScenarioResult
from optimizer.tables import Table, cell

__all__ = ["BenchResult", "Comparison", "ComparisonVerdict", "Conditions", "EngineBench"]


class EngineBench(Model):
    """One engine at one batch size."""

    name: str
    file: str
    backend: str
    status: EngineStatus
    error: str | None = None
    precision: str
    batch: int
    image_size: int | None = None
    threads: int | None = None
    streams: int = 1
    runs_on: str | None = None
    """``cpu`` or ``cuda:0``; ``None`` for a third-party backend, which names its own devices."""
    samples: int = 0
    rounds: int = 0
    first_round: int = 0
    """Index of its first round in `Conditions`, if settings were measured one after another."""
    warmup_calls: int = 0
    latency_ms: Latency | None = None
    latency_ci95_ms: Interval | None = None
    """95 % interval of the median, by bootstrap over rounds."""
    images_per_s: float | None = None
    images_per_s_ci95: Interval | None = None
    batches_per_s: float | None = None
    spans_ms: dict[str, float] = {}
    """Median of each span: ``preprocess``, ``host_to_device``, ``compute``, ``device_to_host``."""
    start_s: float | None = None
    """From process start to its first message, before the engine's library is loaded."""
    first_inference_ms: float | None = None
    build_s: float | None = None
    load_s: float | None = None
    engine_bytes: int | None = None
    peak_rss_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    energy_j: float | None = None
    round_medians_ms: list[float] = []
    raw_file: str | None = None


ComparisonVerdict = Literal["faster", "slower", "equivalent", "inconclusive"]


class Comparison(Model):
    """Two engines of one run compared; ``ratio`` is the speed of ``b`` divided by that of ``a``."""

    a: str
    b: str
    batch: int
    ratio: float
    ci95: Interval
    min_effect: float
    verdict: ComparisonVerdict


class Conditions(Model):
    """The state of the machine during the measurement."""

    cpu: str
    governor: str | None = None
    mhz: list[float] = []
    load_1min: list[float] = []
    other_cpu_share: list[float] = []
    """Share of all cores used by other processes, per round."""
    disturbed_rounds: list[int] = []
    gpu: list[dict[str, Any]] = []
    notes: list[str] = []


class BenchResult(Model):
    """``bench.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["bench"] = "bench"
    created: str
    device: dict[str, Any]
    """The machine's fingerprint: CPU, cores, memory and GPUs, with their ``sha256``."""
    headline: str
    """Which span the numbers measure."""
    engines: list[EngineBench]
    curves: list[Curve] = []
    """Sweeps; empty unless requested."""
    scenarios: list[ScenarioResult] = []
    """LoadGen scenarios, which are not MLPerf results."""
    comparisons: list[Comparison] = []
    a_a_control: Comparison | None = None
    failed: list[str] = []
    """Measurements that failed, each with its error; if there are any, the verdict is ``fail``."""
    conditions: Conditions
    settings: dict[str, Any] = {}
    verdict: VerdictName
    reason: str

    def as_table(self) -> Table:
        """One row per engine and batch size."""
        ratios = {(c.b, c.batch): c for c in self.comparisons}
        baseline = self.settings.get("baseline")
        rows = []
        for engine in self.engines:
            ratio = ratios.get((engine.name, engine.batch))
            latency = engine.latency_ms
            uncompared = "baseline" if engine.name == (baseline or engine.name) else "not compared"
            rows.append(
                (
                    engine.name,
                    str(engine.batch),
                    cell(engine.images_per_s, "{:.1f}"),
                    cell(latency.p50 if latency else None, "{:.2f}"),
                    cell(latency.p99 if latency else None, "{:.2f}"),
                    f"{ratio.ratio:.2f}x" if ratio else "–",
                    f"{ratio.ci95[0]:.2f} … {ratio.ci95[1]:.2f}" if ratio else "–",
                    ratio.verdict if ratio else engine.error or uncompared,
                )
            )
        columns = (
            "engine", "batch", "images/s", "p50, ms", "p99, ms", "ratio", "95 % interval", "",
        )  # fmt: skip
        return Table(columns, rows, self.reason)

    def scenario_table(self) -> Table:
        """One row per engine and LoadGen scenario."""
        rows = [
            (
                scenario.engine,
                scenario.scenario,
                "–" if scenario.value is None else f"{scenario.value:.2f} {scenario.unit}",
                scenario.error or scenario.metric or "",
                cell(scenario.latency_ms.get("p50"), "{:.2f}"),
                cell(scenario.latency_ms.get("p99"), "{:.2f}"),
                str(scenario.queries),
                cell(scenario.duration_s, "{:.1f}"),
            )
            for scenario in self.scenarios
        ]
        columns = (
            "engine", "scenario", "value", "metric", "p50, ms", "p99, ms", "queries", "s",
        )  # fmt: skip
        return Table(columns, rows)
