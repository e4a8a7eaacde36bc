"""MLPerf LoadGen's scenarios, each test in a process of its own. Not MLPerf results.

Server mode looks for the highest rate of a Poisson process whose 99th percentile holds the bound,
by LoadGen's own verdict (which asks for more than the percentile: its early stopping must accept
the number of queries that took longer). The search starts between zero and the engine's measured
rate, halves the interval, and stops when a rate that holds and one that does not lie within
`RESOLUTION` of each other, or after `MOST_PROBES` tests.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Any, get_args

import numpy as np

from optimizer.errors import MissingLibrary, ResnetOptError, UsageError
from optimizer.processes import ChildFailed, Limits, call, cpus_for
from optimizer.profiling.intervals import smallest_sample
from optimizer.profiling.request import SEEN, Request
from optimizer.progress import Progress
from optimizer.results import ScenarioName, ScenarioResult, ServerProbe

__all__ = ["RESOLUTION", "TestLog", "check_scenarios", "read_log", "run_scenario", "run_scenarios"]

RESOLUTION = 1.05
_LOWEST = 1 / 8
"""The lowest rate to try, as a share of the offline rate."""
MOST_PROBES = 10
SERVER_QUERIES = 500
"""Queries of a server test: LoadGen's early stopping accepts p99 from 459 on, if none is late."""
_PATIENCE = 6.0
_START_S = 300.0
_RULES_S, _RULES_SAMPLES = 600, 24_576
"""What MLPerf's rules ask of ResNet-50: seconds of every scenario, samples of offline."""
_METRICS = {
    "single-stream": ("90th percentile of latency, early-stopping estimate", "ms"),
    "multi-stream": ("99th percentile of a query of 8, early-stopping estimate", "ms"),
    "server": ("highest Poisson rate that holds p99", "queries/s"),
    "offline": ("samples per second", "samples/s"),
}
_PERCENTILES = {"50.00": "p50", "90.00": "p90", "95.00": "p95", "99.00": "p99", "99.90": "p99_9"}


def check_scenarios(names: Sequence[str]) -> list[ScenarioName]:
    """Check the names, and that LoadGen is here, before anything is measured.

    Raises:
        UsageError: An unknown scenario, or one named twice.
        MissingLibrary: LoadGen is not installed.
    """
    known = get_args(ScenarioName)
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        said = f"unknown scenario {unknown[0]!r}" if unknown else "a scenario is named twice"
        raise UsageError(said, hint=f"one or several of {', '.join(known)}")
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
    """Run every scenario on every engine; one that fails costs only itself.

    Args:
        engines: Engine files by name.
        scenarios: Which, checked by `check_scenarios`.
        template: What all tests have in common; its limit of latency is that of the server.
        devices: The device to open each file on; see `optimizer.engines.placement.assign_devices`.
        progress: Where steps are reported.
    """
    found: list[ScenarioResult] = []
    if not scenarios:
        return found
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
            found.append(run_scenario(name, scenario, request))
            progress.advance(note=f"{name} {scenario}")
    progress.finish()
    return found


def run_scenario(name: str, scenario: ScenarioName, request: Request) -> ScenarioResult:
    """One scenario of one engine."""
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
                result.notes.append("too few queries for LoadGen's estimate of the metric")
    except ResnetOptError as failure:
        result.status, result.error = "failed", str(failure)
    return result


# --- one test ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestLog:
    """What one test left behind.

    Attributes:
        values: LoadGen's records by key, the last of each.
        seconds: Wall time of the test.
        samples: Images that were computed.
        calls_ms: From being asked to the answer, as this side timed it, in order.
    """

    __test__ = False  # no test of pytest's

    values: dict[str, Any]
    seconds: float
    samples: int
    calls_ms: list[float]

    @property
    def latency_ms(self) -> dict[str, float]:
        """LoadGen's own percentiles, of a query."""
        keys = {label: f"result_{p}_percentile" for p, label in _PERCENTILES.items()}
        found = {}
        for label, key in keys.items():
            for suffix in ("_latency_ns", "_per_query_latency_ns"):
                if isinstance(self.values.get(key + suffix), (int, float)):
                    found[label] = self.values[key + suffix] / 1e6
        return found


def read_log(folder: Path) -> TestLog:
    """Read the detail log of a test and what this side saw.

    Raises:
        ValueError: A line that is no record, or a log without a result.
    """
    values: dict[str, Any] = {}
    for line in (folder / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark != ":::MLLOG":
            raise ValueError(f"not a record of LoadGen: {line[:80]!r}")
        record = json.loads(text)
        values[record["key"]] = record["value"]
    if "result_validity" not in values:
        raise ValueError("LoadGen's log ends before its result")
    seen = json.loads((folder / SEEN).read_text(encoding="utf-8"))
    calls = [ns / 1e6 for ns in seen["call_ns"]]
    return TestLog(values, float(seen["seconds"]), int(seen["samples"]), calls)


def _test(request: Request) -> TestLog:
    """Run one test.

    Raises:
        ResnetOptError: The engine failed, its process crashed or hangs, or LoadGen's log is none.
    """
    wait_policy = _START_S + _PATIENCE * _least_s(request)
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        try:
            call(
                "optimizer.profiling.loadgen:run",
                [replace(request, folder=folder)],
                limits=Limits(seconds=wait_policy),
                threads=request.threads,
                cpus=cpus_for(request.threads),
            )
            return read_log(Path(folder))
        except ChildFailed as failure:
            if failure.reason != "deadline":
                raise
            raise ChildFailed(f"hangs: no result within {wait_policy:.3g} s") from failure
        except (OSError, ValueError, KeyError) as error:
            raise ResnetOptError(f"LoadGen's log cannot be read: {error}") from error


def _least_s(request: Request) -> float:
    rate = request.queries_per_s
    return max(request.duration_s, request.fewest_queries / rate if rate else 0.0)


def _value(scenario: str, log: TestLog) -> float | None:
    if scenario == "offline":
        return float(log.values["result_samples_per_second"])
    key = (
        "early_stopping_latency_ss" if scenario == "single-stream" else "early_stopping_latency_ms"
    )
    estimate = log.values.get(key)
    return estimate / 1e6 if isinstance(estimate, (int, float)) and estimate > 0 else None


def _fill(result: ScenarioResult, log: TestLog) -> None:
    """What every scenario tells of a test."""
    result.queries = int(
        log.values.get("result_query_count") or log.values["generated_query_count"]
    )
    result.samples = log.samples
    result.duration_s = log.seconds
    if result.scenario != "offline":  # its only query is all samples: what it took is no latency
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
    result.notes.append("random images: MLPerf's rules ask for ImageNet and an accuracy run")


# --- server --------------------------------------------------------------------------------------


def _search(result: ScenarioResult, request: Request) -> None:
    """Bisect for the highest rate that holds the bound; see the module's docstring."""
    assert request.max_latency_ms is not None
    capacity = _test(replace(request, scenario="offline", max_latency_ms=None))
    top = float(capacity.values["result_samples_per_second"])
    bare = _test(replace(request, scenario="single-stream", max_latency_ms=None))
    lowest = _LOWEST * top
    if bare.latency_ms["p50"] > request.max_latency_ms:
        result.notes.append(
            f"no rate can hold it: a call alone takes {bare.latency_ms['p50']:.3g} ms (median)"
        )
        return
    held, broken = 0.0, top
    best: TestLog | None = None
    while len(result.probes) < MOST_PROBES and broken > RESOLUTION * max(held, lowest):
        rate = math.sqrt(held * broken) if held else max(lowest, broken / 2)
        log = _test(replace(request, queries_per_s=rate, fewest_queries=SERVER_QUERIES))
        holds = log.values["result_validity"] == "VALID"
        result.probes.append(_probe(rate, log, holds))
        if holds:
            held, best = rate, log
        else:
            broken = rate
    if best is None:
        result.notes.append(
            f"no rate down to {broken:.3g} queries/s held it; below an eighth of the offline rate, "
            f"{lowest:.3g}, none was tried"
        )
        return
    _fill(result, best)
    result.value = held
    result.notes.append(
        f"bisection between 0 and {top:.3g} queries/s (the offline rate), until a rate that holds "
        f"and one that does not are within {RESOLUTION - 1:.0%}, or {MOST_PROBES} tests; up to "
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
