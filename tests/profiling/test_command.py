"""`resnet-opt bench` on misbehaving engines: output, result file and exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.cli import main
from optimizer.results import BenchResult, read_result
from tests.profiling.conftest import MakeEngine

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "300")

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resnet-opt", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return command


def written(path: Path) -> BenchResult:
    result = read_result(path)
    assert isinstance(result, BenchResult)
    return result


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"crash": True}, "crashed: killed by SIGSEGV"),
        ({"nan": True}, "returned NaN or infinity"),
        ({"raise": "device lost"}, "RuntimeError: device lost"),
    ],
)
def test_an_engine_that_fails_fails_the_run_and_the_others_are_kept(
    run: Run, make_engine: MakeEngine, tmp_path: Path, behaviour: dict, words: str
) -> None:
    good, bad = make_engine("good", busy_ms=0.5), make_engine("bad", after=30, **behaviour)
    output = tmp_path / "bench.json"
    code, out, err = run(good, bad, "--duration", "50ms", "--threads", "1", "-o", output)
    assert code == 1
    assert words in out
    assert f"bad.tiny at batch 1: {words}" in err
    assert "Traceback" not in err
    kept, failed = written(output).engines
    assert (kept.status, failed.status) == ("ok", "failed")
    assert kept.images_per_s is not None


def test_growing_memory_is_reported(run: Run, make_engine: MakeEngine, tmp_path: Path) -> None:
    sieve = make_engine("sieve", busy_ms=10.0, leak_bytes=8 << 20)
    _, out, _ = run(sieve, "--duration", "300ms", "--threads", "1", "-o", tmp_path / "b.json")
    assert "note: sieve.tiny: its memory grew by" in out


def test_an_unsteady_machine_exits_with_6(
    run: Run, make_engine: MakeEngine, tmp_path: Path
) -> None:
    wild = make_engine("wild", busy_ms=0.5, wanders=2.0)
    output = tmp_path / "bench.json"
    code, out, err = run(wild, "--duration", "300ms", "--threads", "1", "-o", output)
    assert code == 6
    assert "this machine is too unsteady" in err
    assert "inconclusive: this machine is too unsteady" in out
    assert written(output).engines[0].latency_ms is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--duration", "0s"], "must be more than zero"),
        (["--duration", "10"], "no unit of time"),
        (["--duration", "2000h"], "between 0 s and 24 h"),
        (["--batch", "9"], "batches 2 to 8, not 9"),
        (["--batch", "2,2"], "batches must be different"),
        (["--batch", "4", "--streams", "0"], "streams: '0' is not a positive whole number"),
        (["--batch", "4", "--threads", "x"], "threads: 'x' is not a positive whole number"),
        (["--batch", "4", "--max-latency", "15"], "no unit of time"),
        (["--batch", "4", "--scenario", "offlne"], "unknown scenario 'offlne'"),
    ],
)
def test_bad_options_are_one_clear_line_and_write_nothing(
    run: Run, make_engine: MakeEngine, tmp_path: Path, arguments: list[str], words: str
) -> None:
    output = tmp_path / "bench.json"
    engine = make_engine("profiled", profile=[2, 4, 8])
    code, out, err = run(engine, *arguments, "-o", output)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert not output.exists()


def test_a_sweep_is_printed_with_its_knee_and_the_best_setting(
    run: Run, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine("e", busy_ms=0.5)
    code, out, _ = run(
        engine, "--batch", "1,2,4", "--max-latency", "1s", "--latency-percentile", "p50",
        "--duration", "60ms", "--threads", "1", "-o", tmp_path / "b.json",
    )  # fmt: skip
    assert code == 0
    assert "throughput still rises by more than 5% at batch 4" in out
    assert "best with p50 within 1000 ms: batch 4, 1 thread, 1 stream" in out
