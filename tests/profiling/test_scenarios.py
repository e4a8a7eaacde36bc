"""LoadGen scenarios on engines of known speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import MissingLibrary, UsageError
from optimizer.profiling import scenarios
from optimizer.profiling.benchmark import bench
from optimizer.profiling.loadgen_request import OBSERVED, Request
from optimizer.profiling.scenarios import (
    SERVER_QUERIES,
    TestLog,
    check_scenarios,
    read_log,
    run_scenario,
)
from optimizer.results import SCENARIO_LABEL, ScenarioResult, read_result, write_result
from tests.profiling.conftest import MakeEngine


@pytest.fixture
def needs_loadgen() -> None:
    pytest.importorskip("mlperf_loadgen", reason="pip install 'resnet-opt[loadgen]'")


def request(engine: Path, scenario: str, **changes) -> Request:
    defaults = {
        "engine": str(engine),
        "scenario": scenario,
        "folder": "",
        "duration_s": 0.2,
        "threads": 1,
        "batch": 1,
    }
    return Request(**{**defaults, **changes})


@pytest.mark.usefixtures("needs_loadgen")
def test_single_stream_agrees_with_our_own_timing(make_engine: MakeEngine) -> None:
    """LoadGen's latency includes our time of the call: it starts earlier and ends later."""
    engine = make_engine(busy_ms=5.0, wall_clock=True)  # LoadGen uses the system clock
    result = run_scenario("e", "single-stream", request(engine, "single-stream"))
    assert (result.status, result.error) == ("ok", None)
    assert result.label == SCENARIO_LABEL
    assert result.queries == result.samples >= 64
    assert result.unit == "ms"
    assert result.value is not None
    assert result.value >= 5.0
    assert result.timed_p50_ms is not None
    assert 5.0 <= result.timed_p50_ms <= result.latency_ms["p50"]
    assert "p99" not in result.latency_ms, "p99 needs at least 299 queries"
    assert any(
        "below MLPerf's minimum" in note and f"({result.queries} queries)" in note
        for note in result.notes
    )


@pytest.mark.usefixtures("needs_loadgen")
def test_a_query_of_multi_stream_has_eight_images(make_engine: MakeEngine) -> None:
    engine = make_engine(busy_ms=2.0)  # for any number of images
    several = run_scenario("e", "multi-stream", request(engine, "multi-stream", duration_s=0.001))
    assert several.status == "ok"
    assert several.samples == 8 * several.queries
    assert several.timed_p50_ms == pytest.approx(2.0), "one call per query, not eight"
    assert several.value is None
    assert any("too few queries" in note for note in several.notes)


@pytest.mark.usefixtures("needs_loadgen")
def test_offline_is_one_query(make_engine: MakeEngine) -> None:
    engine = make_engine(busy_ms=2.0, wall_clock=True)
    offline = run_scenario("e", "offline", request(engine, "offline", batch=4))
    assert offline.queries == 1
    assert offline.samples > 64
    assert offline.latency_ms == {}
    assert offline.value is not None
    assert 0 < offline.value <= 2000, "four images in two milliseconds at best"


@pytest.mark.usefixtures("needs_loadgen")
def test_server_converges_to_the_offline_rate_if_every_rate_is_valid(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(busy_ms=10.0)
    requested = request(engine, "server", duration_s=0.01, max_latency_ms=60_000.0)
    result = run_scenario("e", "server", requested)
    assert result.status == "ok", result.error
    assert result.value == result.probes[-1].queries_per_s
    assert all(probe.holds and probe.queries >= SERVER_QUERIES for probe in result.probes)
    assert result.latency_ms["p99"] == result.probes[-1].p99_ms
    assert result.unit == "queries/s"
    assert any("the offline rate" in note for note in result.notes)


@pytest.mark.usefixtures("needs_loadgen")
def test_loadgen_reports_an_invalid_rate(make_engine: MakeEngine) -> None:
    requested = request(
        make_engine(busy_ms=10.0),
        "server",
        duration_s=0.01,
        max_latency_ms=1e-6,  # a nanosecond
        queries_per_s=1000.0,
        min_queries=64,
    )
    log = scenarios._test(requested)
    assert log.values["result_validity"] == "INVALID"
    probe = scenarios._probe(1000.0, log, holds=False)
    assert probe.over_latency == probe.queries >= 64
    assert probe.p99_ms > 1e-6


def server_of(
    capacity: float, limit: float, monkeypatch: pytest.MonkeyPatch, single_ms: float = 1.0
) -> ScenarioResult:
    """The search on an engine that sustains every rate up to a limit."""

    def test(requested: Request) -> TestLog:
        rate = requested.queries_per_s
        valid = rate is None or rate <= limit
        values = {
            "result_samples_per_second": capacity,
            "result_query_count": requested.min_queries,
            "generated_query_count": requested.min_queries,
            "result_overlatency_query_count": 0 if valid else requested.min_queries // 2,
            "result_validity": "VALID" if valid else "INVALID",
            "result_50.00_percentile_latency_ns": 1e6 * single_ms,
            "result_99.00_percentile_latency_ns": 1e6 * (5 if valid else 50),
        }
        return TestLog(values, 1.0, requested.min_queries, [single_ms])

    monkeypatch.setattr(scenarios, "_test", test)
    monkeypatch.setattr(scenarios.metadata, "version", lambda _: "5.1")
    requested = request(Path("e.tiny"), "server", max_latency_ms=15.0)
    return run_scenario("e", "server", requested)


@pytest.mark.parametrize("limit", [180.0, 333.0, 612.5, 999.0])
def test_server_finds_a_valid_rate_just_below_an_invalid_one(
    limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = server_of(1000.0, limit, monkeypatch)
    held = [p.queries_per_s for p in result.probes if p.holds]
    broken = [p.queries_per_s for p in result.probes if not p.holds] or [1000.0]
    assert result.value == max(held) <= limit
    assert min(broken) >= limit or broken == [1000.0]
    assert min(broken) <= scenarios.RESOLUTION * max(held)
    assert max(held) < min(broken), "valid rates are below invalid ones"
    assert len(result.probes) <= scenarios.MAX_PROBES
    assert result.latency_ms["p99"] == 5.0, "of the valid rate"


def test_a_server_without_a_valid_rate_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    result = server_of(1000.0, 100.0, monkeypatch)
    assert result.value is None
    assert not any(probe.holds for probe in result.probes)
    assert min(probe.queries_per_s for probe in result.probes) == 125.0
    assert "rates below an eighth of the offline rate (125) were not tried" in result.notes[-1]


@pytest.mark.usefixtures("needs_loadgen")
def test_no_search_if_a_single_call_exceeds_the_limit(make_engine: MakeEngine) -> None:
    engine = make_engine(busy_ms=10.0)
    requested = request(engine, "server", duration_s=0.01, max_latency_ms=1e-5)
    result = run_scenario("e", "server", requested)
    assert (result.value, result.probes) == (None, [])
    assert any("no rate can meet the limit: a single call takes" in note for note in result.notes)


@pytest.mark.usefixtures("needs_loadgen")
@pytest.mark.parametrize(
    ("scenario", "behaviour", "words"),
    [
        ("single-stream", {"crash": True}, "SIGSEGV"),
        ("single-stream", {"exit": 7}, "exit code 7"),
        ("single-stream", {"raise": "device lost"}, "RuntimeError: device lost"),
        ("single-stream", {"nan": True}, "NaN or infinity"),
        ("single-stream", {"load_error": "damaged"}, "RuntimeError: damaged"),
        ("server", {"raise": "device lost"}, "RuntimeError: device lost"),
    ],
)
def test_an_engine_that_fails_fails_its_scenario_only(
    make_engine: MakeEngine, scenario: str, behaviour: dict, words: str
) -> None:
    engine = make_engine(after=20, **behaviour)
    requested = request(engine, scenario, duration_s=0.05, max_latency_ms=1.0)
    result = run_scenario("e", scenario, requested)  # type: ignore[arg-type]
    assert result.status == "failed"
    assert words in str(result.error)


@pytest.mark.usefixtures("needs_loadgen")
def test_an_engine_that_hangs_is_ended(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "_START_S", 1.0)
    engine = make_engine(hang=True, after=3)
    result = run_scenario("e", "offline", request(engine, "offline", duration_s=0.05))
    assert result.status == "failed"
    assert "hangs: no result within" in str(result.error)


@pytest.mark.usefixtures("needs_loadgen")
def test_bench_runs_scenarios_after_its_own_rounds(make_engine: MakeEngine, tmp_path: Path) -> None:
    good, bad = make_engine("good", busy_ms=1.0), make_engine("bad", nan=True)
    result = bench([good, bad], scenario=["offline"], duration="0.05s", threads=1, control=False)
    (scenario,) = result.scenarios
    assert (scenario.engine, scenario.status) == ("good.tiny", "ok"), (
        "failed engines are not run again"
    )
    write_result(result, tmp_path / "bench.json")
    assert read_result(tmp_path / "bench.json") == result


def test_the_package_does_not_import_its_child_modules() -> None:
    """Otherwise running one as a module would import it twice."""
    code = (
        "import sys, optimizer.profiling, optimizer.profiling.scenarios\n"
        "print('optimizer.profiling.loadgen' in sys.modules, "
        "'optimizer.profiling.bench_worker' in sys.modules)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.split() == ["False", "False"]


def test_invalid_scenarios_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown scenario 'singlestream'") as error:
        check_scenarios(["singlestream"])
    assert "single-stream, multi-stream, server, offline" in str(error.value.hint)
    with pytest.raises(UsageError, match="a scenario is given twice"):
        check_scenarios(["offline", "offline"])


def test_missing_loadgen_is_reported_before_anything_is_measured(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios.util, "find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match="LoadGen is not installed") as error:
        bench([make_engine()], scenario=["offline"])
    assert error.value.hint == "pip install 'resnet-opt[loadgen]'"
    assert check_scenarios([]) == []


# --- the log -------------------------------------------------------------------------------------


def record(key: str, value: object) -> str:
    return ":::MLLOG " + json.dumps({"key": key, "value": value, "time_ms": 0.0})


def write_log(folder: Path, *lines: str) -> Path:
    (folder / "mlperf_log_detail.txt").write_text("\n".join(lines) + "\n")
    (folder / OBSERVED).write_text(
        json.dumps({"seconds": 2.0, "samples": 5, "call_ns": [1e6, 3e6]})
    )
    return folder


def test_the_log_is_read_by_its_keys(tmp_path: Path) -> None:
    log = read_log(
        write_log(
            tmp_path,
            record("result_validity", "VALID"),
            record("result_50.00_percentile_latency_ns", 4_500_000),
            record("result_99.90_percentile_latency_ns", 9_000_000),
            record("unknown_key", {"a": 1}),
        )
    )
    assert log.latency_ms == {"p50": 4.5, "p99_9": 9.0}
    assert (log.seconds, log.samples) == (2.0, 5)
    assert np.median(log.calls_ms) == 2.0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["something else"], "not a LoadGen record"),
        ([":::MLLOG {"], "Expecting"),
        ([record("test_datetime", "2026")], "ends before its result"),
    ],
)
def test_an_invalid_log_is_refused(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_log(write_log(tmp_path, *lines))
