"""The child process that runs one LoadGen scenario, started by `optimizer.profiling.scenarios`.

LoadGen keeps global state, so each process runs one test and ends. It writes LoadGen's logs and its own
measurements (`OBSERVED`) into the folder of the request, where the caller reads both. Settings are set
field by field and not by a configuration file, because LoadGen reads its own ``mlperf.conf`` only for
the first test of a process.

A query is one image (eight in multi-stream) from a pool of random images. In server mode, a thread takes
all waiting queries, up to the batch size, and computes them together; offline computes its single query
in batches.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines import Session, open_engine
from optimizer.errors import ResnetOptError
from optimizer.processes import give_up
from optimizer.profiling.bench_worker import input_shape, random_batch
from optimizer.profiling.loadgen_request import OBSERVED, Request

__all__ = ["POOL", "run"]

POOL = 16
"""Number of images that queries are drawn from."""
_WARM_UP_S = 1.0
_MIN_QUERIES = 64
"""Minimum for LoadGen's early stopping at the 90th percentile of single-stream."""


class _Computer:
    """Runs the engine and counts its calls and samples."""

    def __init__(self, request: Request, loadgen: Any) -> None:
        self._loadgen = loadgen
        self._request = request
        self._session: Session = open_engine(
            Path(request.engine), threads=request.threads, device=request.device
        )
        spec = self._session.input
        batch = spec.shape[0] or 1
        shape = input_shape(spec, batch, request.image_size)
        size = shape[1] if spec.dtype == "uint8" else shape[2]
        pools = [
            random_batch(spec, batch, size, request.seed + i) for i in range(-(-POOL // batch))
        ]
        self._pool = np.concatenate(pools)[:POOL]
        self.call_ns: list[int] = []
        self.samples = 0

    def compute(self, queries: list[Any], started_ns: int) -> None:
        """Compute the samples of one or several queries and complete them."""
        images = self._pool[[query.index for query in queries]]
        outputs = self._session.run(images)
        responses = [self._loadgen.QuerySampleResponse(query.id, 0, 0) for query in queries]
        self.call_ns.append(time.perf_counter_ns() - started_ns)
        self._loadgen.QuerySamplesComplete(responses)
        self.samples += len(queries)
        if not np.all(np.isfinite(outputs)):
            raise ResnetOptError("returned NaN or infinity")

    def warm_up(self, images: int) -> float:
        """Warm up for one second; returns images per second in the second half."""
        batch = self._pool[np.arange(images) % POOL]
        times = [time.perf_counter()]
        while times[-1] - times[0] < _WARM_UP_S or len(times) < 5:
            self._session.run(batch)
            times.append(time.perf_counter())
        late = times[len(times) // 2 :]
        return images * (len(late) - 1) / (late[-1] - late[0])


def _inline(request: Request, loadgen: Any) -> tuple[_Computer, Any]:
    """Single-stream, multi-stream and offline: compute in LoadGen's own thread."""
    computer = _Computer(request, loadgen)
    step = request.batch if request.scenario == "offline" else 8

    def issue(queries: list[Any]) -> None:
        started_ns = time.perf_counter_ns()
        try:
            for start in range(0, len(queries), step):
                computer.compute(queries[start : start + step], started_ns)
        except Exception as error:  # noqa: BLE001 - reported to the parent
            give_up(error)  # an exception passing through LoadGen would abort the process

    return computer, issue


def _queued(request: Request, loadgen: Any) -> tuple[_Computer, Any]:
    """Server: a thread owns the engine and takes waiting queries."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    opened: queue.SimpleQueue[_Computer] = queue.SimpleQueue()

    def work() -> None:
        try:
            computer = _Computer(request, loadgen)
            for images in {1, request.batch}:
                computer.warm_up(images)
            opened.put(computer)
            while True:
                queries = [waiting.get()]
                started_ns = time.perf_counter_ns()
                with contextlib.suppress(queue.Empty):
                    while len(queries) < request.batch:
                        queries.append(waiting.get_nowait())
                computer.compute(queries, started_ns)
        except Exception as error:  # noqa: BLE001 - reported to the parent
            give_up(error)

    threading.Thread(target=work, daemon=True).start()

    def issue(queries: list[Any]) -> None:
        for query in queries:
            waiting.put(query)

    return opened.get(), issue


def _settings(request: Request, loadgen: Any, rate: float | None) -> Any:
    settings = loadgen.TestSettings()
    names = {"single-stream": "SingleStream", "multi-stream": "MultiStream"}
    name = names.get(request.scenario, request.scenario.capitalize())
    settings.scenario = getattr(loadgen.TestScenario, name)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(request.duration_s * 1e3)
    settings.min_query_count = _MIN_QUERIES if request.scenario == "single-stream" else 1
    for field in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(settings, field, request.seed + 1)
    if request.scenario == "offline":
        settings.offline_expected_qps = rate
    if request.scenario == "server":
        assert request.queries_per_s is not None
        assert request.max_latency_ms is not None
        settings.server_target_qps = request.queries_per_s
        settings.server_target_latency_ns = int(request.max_latency_ms * 1e6)
        settings.server_target_latency_percentile = 0.99
        settings.min_query_count = request.min_queries
    return settings


def run(request: Request) -> None:
    """Run the scenario in this process, which can then not run another.

    Raises:
        ResnetOptError: The engine cannot be opened, or returned NaN or infinity.
    """
    import mlperf_loadgen as loadgen

    rate = None
    if request.scenario == "server":
        computer, issue = _queued(request, loadgen)
    else:
        computer, issue = _inline(request, loadgen)
        images = {"offline": request.batch, "multi-stream": 8}.get(request.scenario, 1)
        rate = computer.warm_up(images)
    logs = loadgen.LogSettings()
    logs.log_output.outdir = request.folder
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(POOL, POOL, lambda _: None, lambda _: None)
    started = time.perf_counter()
    loadgen.StartTestWithLogSettings(system, library, _settings(request, loadgen, rate), logs)
    observed = {
        "seconds": time.perf_counter() - started,
        "samples": computer.samples,
        "call_ns": computer.call_ns,
    }
    (Path(request.folder) / OBSERVED).write_text(json.dumps(observed), encoding="utf-8")
