"""MLPerf LoadGen scenarios, one child process per test. These are not MLPerf results.

Server mode searches for the highest rate of a Poisson process whose 99th percentile meets the latency
limit, by LoadGen's own verdict (which is stricter than the percentile: its early stopping must also
accept the number of queries over the limit). The search starts between zero and the engine's measured
offline rate and bisects. It stops when a valid and an invalid rate are within `RESOLUTION` of each
other, or after `MAX_PROBES` tests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Any, get_args

import numpy as np

from optimizer.artifacts import scratch_folder
from optimizer.errors import MissingLibrary, ResnetOptError, UsageError
from optimizer.processes import ChildFailed, Limits, call, cpus_for
from optimizer.profiling.intervals import smallest_sample
from optimizer.profiling.loadgen_request import OBSERVED, Request
from optimizer.progress import Progress
from optimizer.results import ScenarioName, ScenarioResult, ServerProbe

__all__ = ["RESOLUTION", "TestLog", "check_scenarios", "read_log", "run_scenario", "run_scenarios"]

RESOLUTION = 1.05
_LOWEST_SHARE = 1 / 8
"""Lowest rate to try, as a share of the offline rate."""
MAX_PROBES = 10
SERVER_QUERIES = 500
"""Queries of a server test; LoadGen's early stopping needs at least 459 for p99."""
_TIMEOUT_FACTOR = 6.0
_START_S = 300.0
_RULES_S, _RULES_SAMPLES = 600, 24_576
"""MLPerf's minimum for ResNet-50: seconds of every scenario, samples of offline."""
_METRICS = {
    "single-stream": ("90th percentile of latency, early-stopping estimate", "ms"),
    "multi-stream": ("99th percentile of a query of 8, early-stopping estimate", "ms"),
    "server": ("highest Poisson rate that holds p99", "queries/s"),
    "offline": ("samples per second", "samples/s"),
}
_PERCENTILES = {"50.00": "p50", "90.00": "p90", "95.00": "p95", "99.00": "p99", "99.90": "p99_9"}


def check_scenarios(names: Sequence[str]) -> list[ScenarioName]:
    """Check the scenario names, and that LoadGen is installed if there are any.

    Raises:
        UsageError: A scenario is unknown or given twice.
        MissingLibrary: LoadGen is not installed.
    """
    known = get_args(ScenarioName)
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        message = f"unknown scenario {unknown[0]!r}" if unknown else "a scenario is given twice"
        raise UsageError(message, hint=f"choose from {', '.join(known)}")
    if names and util.find_spec("mlperf_loadgen") is None:
        raise MissingLibrary("LoadGen is not installed", hint="pip install 'resnet-opt[loadgen]'")
    return [name for name in known if name in names]


def run_scenarios(
    engines: Mapping[str, Path],
    scenarios: Sequence[ScenarioName],
    template: Request,
    *,
    devices: Mapping[Path, str | None],
    progress: Progress,
) -> list[ScenarioResult]:
    """Run every scenario on every engine; a failure does not affect the other tests.

    Args:
        engines: Engine files by name.
        scenarios: Scenarios, as returned by `check_scenarios`.
        template: Common settings of all tests; its latency limit applies to the server scenario only.
        devices: Device of each engine file; see `optimizer.engines.placement.assign_devices`.
        progress: Receives progress updates.
    """
    results: list[ScenarioResult] = []
    if not scenarios:
        return results
    progress.start("LoadGen", total=len(engines) * len(scenarios))
    for name, path in engines.items():
        for scenario in scenarios:
            request = replace(
                template,
                engine=str(path),
                scenario=scenario,
                device=devices[path],
                max_latency_ms=template.max_latency_ms if scenario == "server" else None,
            )
            results.append(run_scenario(name, scenario, request))
            progress.advance(note=f"{name} {scenario}")
    progress.finish()
    return results


def run_scenario(name: str, scenario: ScenarioName, request: Request) -> ScenarioResult:
    """Run one scenario on one engine."""
    metric, unit = _METRICS[scenario]
    result = ScenarioResult(
        engine=name,
        scenario=scenario,
        status="ok",
        loadgen=metadata.version("mlcommons-loadgen"),
        threads=request.threads,
        samples_per_query=8 if scenario == "multi-stream" else 1,
        metric=metric,
        unit=unit,
        max_latency_ms=request.max_latency_ms,
    )
    try:
        if scenario == "server":
            _search(result, request)
        else:
            log = _test(request)
            _fill(result, log)
            result.value = _value(scenario, log)
            if result.value is None:
                result.notes.append("too few queries for LoadGen to estimate the metric")
    except ResnetOptError as failure:
        result.status, result.error = "failed", str(failure)
    return result


# --- one test ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestLog:
    """The logs of one test.

    Attributes:
        values: LoadGen's records by key, the last of each.
        seconds: Wall-clock time of the test.
        samples: Number of computed images.
        calls_ms: Time from each query's arrival to its response, timed by the child, in order.
    """

    __test__ = False  # keep pytest from collecting this class

    values: dict[str, Any]
    seconds: float
    samples: int
    calls_ms: list[float]

    @property
    def latency_ms(self) -> dict[str, float]:
        """LoadGen's own percentiles of query latency."""
        keys = {label: f"result_{p}_percentile" for p, label in _PERCENTILES.items()}
        percentiles = {}
        for label, key in keys.items():
            for suffix in ("_latency_ns", "_per_query_latency_ns"):
                if isinstance(self.values.get(key + suffix), (int, float)):
                    percentiles[label] = self.values[key + suffix] / 1e6
        return percentiles


def read_log(folder: Path) -> TestLog:
    """Read LoadGen's detail log and the child's own measurements.

    Raises:
        ValueError: A line is not a record, or the log has no result.
    """
    values: dict[str, Any] = {}
    for line in (folder / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark != ":::MLLOG":
            raise ValueError(f"not a LoadGen record: {line[:80]!r}")
        record = json.loads(text)
        values[record["key"]] = record["value"]
    if "result_validity" not in values:
        raise ValueError("LoadGen's log ends before its result")
    observed = json.loads((folder / OBSERVED).read_text(encoding="utf-8"))
    calls = [ns / 1e6 for ns in observed["call_ns"]]
    return TestLog(values, float(observed["seconds"]), int(observed["samples"]), calls)


def _test(request: Request) -> TestLog:
    """Run one test.

    Raises:
        ResnetOptError: The engine failed, its process crashed or hung, or LoadGen's log is invalid.
    """
    timeout_s = _START_S + _TIMEOUT_FACTOR * _min_duration_s(request)
    with scratch_folder("loadgen") as folder:
        try:
            call(
                "optimizer.profiling.loadgen:run",
                [replace(request, folder=str(folder))],
                limits=Limits(seconds=timeout_s),
                threads=request.threads,
                cpus=cpus_for(request.threads),
            )
            return read_log(Path(folder))
        except ChildFailed as failure:
            if failure.reason != "deadline":
                raise
            raise ChildFailed(f"hangs: no result within {timeout_s:.3g} s") from failure
        except (OSError, ValueError, KeyError) as error:
            raise ResnetOptError(f"LoadGen's log cannot be read: {error}") from error


def _min_duration_s(request: Request) -> float:
    rate = request.queries_per_s
    return max(request.duration_s, request.min_queries / rate if rate else 0.0)


def _value(scenario: str, log: TestLog) -> float | None:
    if scenario == "offline":
        return float(log.values["result_samples_per_second"])
    key = (
        "early_stopping_latency_ss" if scenario == "single-stream" else "early_stopping_latency_ms"
    )
    estimate = log.values.get(key)
    return estimate / 1e6 if isinstance(estimate, (int, float)) and estimate > 0 else None


def _fill(result: ScenarioResult, log: TestLog) -> None:
    """Fill in the figures common to all scenarios."""
    result.queries = int(
        log.values.get("result_query_count") or log.values["generated_query_count"]
    )
    result.samples = log.samples
    result.duration_s = log.seconds
    if result.scenario != "offline":  # its single query holds all samples, so it has no latency
        result.latency_ms = {
            label: ms
            for label, ms in log.latency_ms.items()
            if result.queries >= smallest_sample(float(label[1:].replace("_", ".")) / 100)
        }
    if result.scenario in {"single-stream", "multi-stream"}:
        result.timed_p50_ms = float(np.median(log.calls_ms))
    result.valid = log.values["result_validity"] == "VALID"
    below = []
    if log.seconds < _RULES_S:
        below.append(f"{log.seconds:.3g} s instead of at least {_RULES_S} s")
    if result.scenario == "offline" and log.samples < _RULES_SAMPLES:
        below.append(f"{log.samples:,} samples instead of at least {_RULES_SAMPLES:,}")
    if below:
        result.notes.append(
            f"below MLPerf's minimum: {' and '.join(below)} ({result.queries:,} queries)"
        )
    result.notes.append("random images: MLPerf requires ImageNet and an accuracy run")


# --- server --------------------------------------------------------------------------------------


def _search(result: ScenarioResult, request: Request) -> None:
    """Bisect for the highest rate that meets the latency limit; see the module docstring."""
    assert request.max_latency_ms is not None
    capacity = _test(replace(request, scenario="offline", max_latency_ms=None))
    offline_rate = float(capacity.values["result_samples_per_second"])
    single = _test(replace(request, scenario="single-stream", max_latency_ms=None))
    lowest = _LOWEST_SHARE * offline_rate
    if single.latency_ms["p50"] > request.max_latency_ms:
        result.notes.append(
            "no rate can meet the limit: a single call takes "
            f"{single.latency_ms['p50']:.3g} ms (median)"
        )
        return
    valid_rate, invalid_rate = 0.0, offline_rate
    best: TestLog | None = None
    while len(result.probes) < MAX_PROBES and invalid_rate > RESOLUTION * max(valid_rate, lowest):
        rate = math.sqrt(valid_rate * invalid_rate) if valid_rate else max(lowest, invalid_rate / 2)
        log = _test(replace(request, queries_per_s=rate, min_queries=SERVER_QUERIES))
        holds = log.values["result_validity"] == "VALID"
        result.probes.append(_probe(rate, log, holds))
        if holds:
            valid_rate, best = rate, log
        else:
            invalid_rate = rate
    if best is None:
        result.notes.append(
            f"no rate down to {invalid_rate:.3g} queries/s met the limit; rates below an eighth of the "
            f"offline rate ({lowest:.3g}) were not tried"
        )
        return
    _fill(result, best)
    result.value = valid_rate
    result.notes.append(
        f"bisection between 0 and {offline_rate:.3g} queries/s (the offline rate), until a valid and "
        f"an invalid rate are within {RESOLUTION - 1:.0%}, or {MAX_PROBES} tests; up to "
        f"{request.batch} waiting images are computed together"
    )


def _probe(rate: float, log: TestLog, holds: bool) -> ServerProbe:
    return ServerProbe(
        queries_per_s=rate,
        queries=int(log.values["generated_query_count"]),
        p99_ms=log.latency_ms["p99"],
        over_latency=int(log.values.get("result_overlatency_query_count") or 0),
        holds=holds,
    )
