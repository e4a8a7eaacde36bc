"""The worker process: responses, failures and loaded libraries."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optimizer.engines import TensorSpec
from optimizer.errors import UsageError
from optimizer.processes import Child, cpus_for, memory_bytes
from optimizer.profiling import bench_worker as worker_module
from optimizer.profiling.bench_worker import input_shape, random_batch, time_calls, wait_until_idle
from optimizer.profiling.worker_process import Worker, WorkerFailed
from tests.profiling.conftest import MakeEngine


@pytest.fixture
def worker(make_engine: MakeEngine):
    worker = Worker(threads=1)
    yield worker
    worker.close()


def load(worker: Worker, path: Path, *, batch: int = 1, image_size: int | None = None):
    loaded, _ = worker.ask("load", timeout_s=120, path=str(path), threads=1, device=None)
    prepared, _ = worker.ask("prepare", timeout_s=120, batch=batch, image_size=image_size, seed=0)
    return loaded, prepared


def test_it_times_each_span_of_each_call(worker: Worker, make_engine: MakeEngine) -> None:
    path = make_engine(busy_ms=2.0, upload_ms=0.5, download_ms=1.0)
    loaded, prepared = load(worker, path, batch=4)
    assert loaded["load_s"] > 0
    assert prepared["first_inference_ms"] == pytest.approx(3.5)
    assert prepared["image_size"] == 8
    header, arrays = worker.ask(
        "time", timeout_s=120, seconds=0.05, min_calls=3, lead_in_s=0.0, min_lead_in=2
    )
    calls = arrays["calls"]
    assert header["lead_in"] == 2
    assert len(calls) >= 5
    assert np.array_equal(np.diff(calls[:, 0]), calls[:-1, 1:].sum(axis=1)), "one after another"
    assert np.array_equal(calls[:, 1:] / 1e6, [[0.5, 2.0, 1.0]] * len(calls))
    assert header["peak_rss_bytes"] >= header["rss_bytes"] > 0


def test_output_of_libraries_is_kept_apart_from_messages(
    worker: Worker, make_engine: MakeEngine
) -> None:
    load(worker, make_engine(print='{"ok": true, "arrays": {}}'))
    header, _ = worker.ask("time", timeout_s=120, seconds=0, min_calls=1)
    assert header["ok"]


def test_it_loads_no_other_engines_library(worker: Worker, make_engine: MakeEngine) -> None:
    loaded, _ = load(worker, make_engine())
    assert loaded["runtimes"] == []


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"load_error": "the file is\ndamaged"}, "RuntimeError: the file is"),
        ({"crash_at_load": True}, "SIGSEGV (the library's last words)"),
        ({"exit": 3}, "exit code 3"),
        ({"crash": True}, "SIGSEGV"),
        ({"raise": "out of something"}, "RuntimeError: out of something"),
        ({"nan": True}, "NaN or infinity in 1 of 20 outputs"),
    ],
)
def test_failures_of_an_engine_are_reported(
    worker: Worker, make_engine: MakeEngine, behaviour: dict, words: str
) -> None:
    with pytest.raises(WorkerFailed) as failure:
        load(worker, make_engine(**behaviour), batch=2)
    assert words in failure.value.message
    assert failure.value.status == "failed"
    assert not failure.value.usage


def test_a_missing_device_is_no_failure_of_the_engine(
    worker: Worker, make_engine: MakeEngine
) -> None:
    with pytest.raises(WorkerFailed, match="no such accelerator") as failure:
        load(worker, make_engine(needs_device=True))
    assert failure.value.status == "built-not-run"


def test_an_invalid_request_is_distinguished_from_a_failure(
    worker: Worker, make_engine: MakeEngine
) -> None:
    with pytest.raises(WorkerFailed, match="fixed batch 2, not 3") as failure:
        load(worker, make_engine(batch=2), batch=3)
    assert failure.value.usage


def test_a_hanging_engine_is_ended(worker: Worker, make_engine: MakeEngine) -> None:
    load(worker, make_engine(hang=True, after=1))
    with pytest.raises(WorkerFailed, match=r"hangs: no answer within 0\.3 s"):
        worker.ask("time", timeout_s=0.3, seconds=0, min_calls=1)
    assert not Path(f"/proc/{worker.pid}").exists()
    with pytest.raises(WorkerFailed, match="SIGKILL"):
        worker.ask("time", timeout_s=1, seconds=0, min_calls=1)


def test_it_ends_when_its_input_is_closed() -> None:
    child = Child("optimizer.profiling.bench_worker:serve")
    child.wait_policy.deadline = time.monotonic() + 60
    child.answers.readline()
    child.requests.close()
    assert child.answers.readline() == b""
    assert child.failure().message == "crashed: exit code 0"
    assert list(child.last_lines) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans")
def test_it_does_not_outlive_the_harness_even_while_it_hangs(make_engine: MakeEngine) -> None:
    path = make_engine(hang=True, after=1)
    code = (
        "from optimizer.profiling.worker_process import Worker\n"
        "worker = Worker(1)\n"
        f"worker.ask('load', timeout_s=120, path={str(path)!r}, threads=1, device=None)\n"
        "worker.ask('prepare', timeout_s=120, batch=1, image_size=None, seed=0)\n"
        "print(worker.pid, flush=True)\n"
        "worker.ask('time', timeout_s=1200, seconds=0, min_calls=1)\n"
    )
    harness = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
        ],
        stdout=subprocess.PIPE,
    )
    assert harness.stdout is not None
    pid = int(harness.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    harness.kill()
    harness.wait(60)
    harness.stdout.close()
    end = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


# --- in this process -----------------------------------------------------------------------------


class Clock:
    """A fake `time` module whose time advances only in `sleep` and through ``ns``."""

    def __init__(self, spinning_s: float = 0.0) -> None:
        self.ns = 5_000_000_000
        self.readings = 0
        self._spins_until = self.ns + int(1e9 * spinning_s)
        self._began = self.ns

    def perf_counter_ns(self) -> int:
        self.readings += 1
        return self.ns

    def perf_counter(self) -> float:
        return self.ns / 1e9

    def process_time(self) -> float:
        return (min(self.ns, self._spins_until) - self._began) / 1e9

    def sleep(self, seconds: float) -> None:
        self.ns += int(1e9 * seconds)


class Counting:
    """A bound batch that records its calls and advances a clock."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.order: list[str] = []
        self.clock = clock or Clock()

    def upload(self) -> None:
        self.order.append("upload")
        self.clock.ns += 1_000

    def enqueue(self) -> None:
        self.order.append("enqueue")
        self.clock.ns += 20_000

    def wait(self) -> None:
        self.order.append("wait")
        self.clock.ns += 300_000

    def download(self) -> None:
        self.order.append("download")
        self.clock.ns += 4_000

    def output(self) -> np.ndarray:
        return np.zeros((1, 10), np.float32)


@pytest.mark.parametrize(("lead", "minimum"), [(0, 1), (0, 7), (3, 1), (2, 5)])
def test_timing_makes_the_minimum_number_of_calls(lead: int, minimum: int) -> None:
    bound = Counting()
    calls, lead_in = time_calls(bound, seconds=0, min_calls=minimum, min_lead_in=lead)
    assert calls.shape == (lead + minimum, 4)
    assert calls.dtype == np.int64
    assert lead_in == lead
    assert bound.order == ["upload", "enqueue", "wait", "download"] * (lead + minimum)


def test_timing_continues_for_the_requested_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    calls, lead_in = time_calls(Counting(clock), seconds=0.02, min_calls=1, lead_in_s=0.01)
    call_ns = 325_000
    assert lead_in == math.ceil(10e6 / call_ns)
    assert len(calls) - lead_in == math.ceil(20e6 / call_ns)
    assert np.array_equal(calls[:, 0], 5_000_000_000 + call_ns * np.arange(len(calls)))
    assert np.array_equal(calls[:, 1:], [[1_000, 320_000, 4_000]] * len(calls))


def test_the_only_overhead_in_a_call_is_reading_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``benchmarks/false_alarms.py`` measures this overhead."""
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    calls, _ = time_calls(Counting(clock), seconds=0, min_calls=100)
    assert clock.readings == 1 + 4 * len(calls)


@pytest.mark.parametrize(
    ("spinning_s", "waited_s", "busy"), [(0.05, 0.06, 0.0), (0.0, 0.01, 0.0), (9.0, 0.5, 1.0)]
)
def test_it_waits_for_threads_that_spin_after_a_call(
    monkeypatch: pytest.MonkeyPatch, spinning_s: float, waited_s: float, busy: float
) -> None:
    monkeypatch.setattr(worker_module, "time", Clock(spinning_s))
    assert wait_until_idle(0.5) == pytest.approx((waited_s, busy))


FLOAT = TensorSpec("images", (None, 3, None, None), "float32")
PIXELS = TensorSpec("images", (4, 32, 32, 3), "uint8")


def test_engines_with_the_same_input_get_the_same_images() -> None:
    a, b = (random_batch(FLOAT, 2, 16, seed=5) for _ in range(2))
    assert a.shape == (2, 3, 16, 16)
    assert a.dtype == np.float32
    assert np.array_equal(a, b)
    assert not np.array_equal(a, random_batch(FLOAT, 2, 16, seed=6))
    pixels = random_batch(PIXELS, 4, None, seed=5)
    assert pixels.shape == (4, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.min() < 5
    assert pixels.max() > 250


@pytest.mark.parametrize(
    ("spec", "batch", "size", "words"),
    [
        (FLOAT, 1, None, "the engine has a dynamic image size"),
        (PIXELS, 2, None, "fixed batch 4, not 2"),
        (PIXELS, 4, 64, "fixed image size 32, not 64"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    spec: TensorSpec, batch: int, size: int | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        input_shape(spec, batch, size)


def test_peak_memory_excludes_the_parent_process() -> None:
    peak, now = memory_bytes()
    assert now is not None
    assert peak >= now > 1 << 20
    code = "from optimizer.processes import memory_bytes\nprint(memory_bytes()[0])"
    ballast = bytearray(os.urandom(1 << 20) * 300)
    child = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    )
    assert child < len(ballast), "the parent's memory must not count"


def test_workers_are_pinned_to_one_hardware_thread_per_core() -> None:
    allowed = os.sched_getaffinity(0)
    for threads in range(1, len(allowed) + 2):
        chosen = cpus_for(threads)
        if chosen is not None:
            assert len(chosen) == len(set(chosen)) == threads
            assert set(chosen) < allowed


def test_a_worker_runs_on_the_cpus_it_is_pinned_to(worker: Worker) -> None:
    assert os.sched_getaffinity(worker.pid) == set(cpus_for(1) or os.sched_getaffinity(0))
