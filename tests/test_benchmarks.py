"""The scripts in ``benchmarks/``: they run, and their limits are checked."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def false_alarms(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("false_alarms")


def recording(**changes: Any) -> dict[str, Any]:
    row = {
        "engine": "openvino int8", "loaded": False, "median_ms": 12.5, "experiments": 2000,
        "seconds": 48.0, "false_alarms": 0.004, "found": 0.97, "wrong": 0.0,
    }  # fmt: skip
    return row | changes


def report(**changes: Any) -> dict[str, Any]:
    result = {
        "device": {"cpu": "a CPU"},
        "recordings": [recording(), recording(loaded=True, found=0.2)],
        "live": [{"ratio": 1.0, "ci95": [0.99, 1.01], "verdict": "equivalent"}] * 20,
        "overhead": {
            "engine": "e", "bare_ms": 10.0, "harness_ms": 10.01, "ratio": 0.999, "ci95": [0.99, 1.0],
        },
        "call_us": 0.5,
    }  # fmt: skip
    return result | changes


def test_limits_that_hold(false_alarms: Any) -> None:
    held = false_alarms.limits(report())
    assert all(held.values()), "the slowdown need not be found on a loaded machine"
    assert "| no |" not in false_alarms.text(report())
    assert "97.0%" in false_alarms.text(report())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recordings": [recording(false_alarms=0.06)]}, "false alarms"),
        ({"recordings": [recording(found=0.79)]}, "found in at least"),
        ({"recordings": [recording(), recording(loaded=True, wrong=0.06)]}, "faster or equivalent"),
        ({"recordings": [recording(seconds=61)]}, "experiments of at most"),
        ({"live": [{"verdict": "slower"}] * 3 + [{"verdict": "equivalent"}] * 17}, "live runs"),
        ({"overhead": report()["overhead"] | {"ratio": 0.98}}, "bare loop"),
        ({"call_us": 21.0}, "a call"),
    ],
)
def test_a_broken_limit_is_reported(false_alarms: Any, changes: dict, words: str) -> None:
    broken = [name for name, held in false_alarms.limits(report(**changes)).items() if not held]
    assert len(broken) == 1
    assert words in broken[0]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.mark.long
def test_false_alarms_runs_from_the_recording_to_the_table(tmp_path: Path) -> None:
    done = run("false_alarms.py", "--quick", "--output", tmp_path)
    assert done.returncode in {0, 1}, done.stderr  # 1: a limit is not held, on a tiny network
    result = json.loads((tmp_path / "false_alarms.json").read_text(encoding="utf-8"))
    assert [row["loaded"] for row in result["recordings"]] == [False, True]
    for row in result["recordings"]:
        assert sum(row["alike"].values()) == sum(row["slowed"].values()) == row["experiments"]
    assert len(result["live"]) == 1
    assert (done.returncode == 0) == all(result["limits"].values())
    assert done.stdout.strip() in (tmp_path / "false_alarms.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_cpu_peers_runs(tmp_path: Path) -> None:
    done = run("cpu_peers.py", "--quick", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    for table in result["tables"]:
        assert table["rows"][0]["name"].startswith("ours, auto")
        assert table["rows"][0]["speed_of_auto_in_units_of_it"] == 1
        failed = {row["name"]: row["error"] for row in table["rows"] if "error" in row}
        assert failed == {}
    names = {row["name"] for table in result["tables"] for row in table["rows"]}
    assert {"PyTorch eager", "PyTorch compiled", "OpenVINO's benchmark_app"} <= names


@pytest.mark.parametrize("script", ["false_alarms.py", "cpu_peers.py"])
def test_a_smoke_test_cannot_overwrite_a_report(script: str) -> None:
    done = run(script, "--quick")
    assert done.returncode == 2
    assert "--output" in done.stderr
