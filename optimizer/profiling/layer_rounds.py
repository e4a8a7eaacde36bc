"""Rounds of layer times: an engine in a worker process, with and without the library's profiler."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError
from optimizer.profiling.conditions import Monitor, gpus_of
from optimizer.profiling.engine_facts import EngineFacts
from optimizer.profiling.harness import settled
from optimizer.profiling.worker_process import Worker, WorkerFailed
from optimizer.progress import Progress
from optimizer.results import Conditions, LayerInfo

__all__ = [
    "ROUNDS",
    "LayerRequest",
    "LayerRounds",
    "interleave_engines",
    "measure_layers",
    "time_layers",
    "time_whole",
    "warm_up",
]

ROUNDS = 12
_MIN_CALLS, _MAX_CALLS = 3, 20
"""Profiled calls per round. More would hardly change the median, and they take long with libraries
that open the engine again for profiling."""
_LOAD_TIMEOUT_S = 600.0
_LONGEST_REST_S = 0.25
_MAX_WINDOWS = 20
Rounds = list[NDArray[np.float64]]


@dataclass(frozen=True)
class LayerRequest:
    """What is measured of each engine: with which batch and threads, on which device, for how long."""

    batch: int
    image_size: int | None
    threads: int
    duration_s: float
    devices: Mapping[Path, str | None]
    seed: int
    call_timeout_s: float


@dataclass
class LayerRounds:
    """Times of whole calls and of layers, per round."""

    whole: Rounds = field(default_factory=list)
    layers: list[list[LayerInfo]] = field(default_factory=list)
    calls: int = 0
    image_size: int | None = None
    failure: WorkerFailed | None = None
    conditions: Conditions | None = None
    notes: list[str] = field(default_factory=list)


def measure_layers(fact: EngineFacts, request: LayerRequest, progress: Progress) -> LayerRounds:
    """Profile one engine in a worker process.

    Raises:
        UsageError: The engine cannot be opened, or not with this batch, or has no layer times.
    """
    measured = LayerRounds()
    progress.start(f"profile {fact.name}", total=ROUNDS)
    worker: Worker | None = None
    try:
        worker = Worker(request.threads)
        call_s = warm_up(worker, fact, request, measured)
        monitor = Monitor([worker.pid], gpus=gpus_of([(fact.path, request.devices[fact.path])]))
        _interleave(worker, call_s, request, measured, monitor, progress)
    except WorkerFailed as failure:
        if failure.usage:
            raise UsageError(f"{fact.name}: {failure.message}") from None
        measured.failure = failure
    finally:
        if worker is not None:
            worker.close()
    progress.finish(measured.failure.message if measured.failure else f"{ROUNDS} rounds")
    return measured


def interleave_engines(
    engines: Sequence[EngineFacts], request: LayerRequest, *, rounds: int, progress: Progress
) -> list[LayerRounds]:
    """Profile several engines together, in random order in each round, so that they can be compared.

    Each has a worker process of its own; all are in memory at the same time. The caller starts and
    finishes the progress, which advances once per round.

    Raises:
        UsageError: An engine cannot be opened, or not with this batch, or has no layer times.
        WorkerFailed: An engine failed.
    """
    measured = [LayerRounds() for _ in engines]
    order = np.random.default_rng(request.seed)
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        calls: list[int] = []
        for fact, own in zip(engines, measured, strict=True):
            worker = Worker(request.threads)
            stack.callback(worker.close)
            workers.append(worker)
            try:
                call_s = warm_up(worker, fact, request, own)
            except WorkerFailed as failure:
                if failure.usage:
                    raise UsageError(f"{fact.name}: {failure.message}") from None
                raise
            affordable = math.ceil(request.duration_s / rounds / 2 / call_s)
            calls.append(max(_MIN_CALLS, min(_MAX_CALLS, affordable)))
        used = [(fact.path, request.devices[fact.path]) for fact in engines]
        monitor = Monitor([worker.pid for worker in workers], gpus=gpus_of(used))
        monitor.begin()
        stack.callback(monitor.close)
        for _ in range(rounds):
            for number in order.permutation(len(engines)):
                own, worker = measured[number], workers[number]
                with monitor.computing():
                    own.whole.append(time_whole(worker, request, calls=calls[number]))
                    own.layers.append(time_layers(worker, request, calls=calls[number]))
                own.calls = calls[number]
            monitor.read()
            progress.advance()
        conditions = monitor.summary([])
    for own in measured:
        own.conditions = conditions
    return measured


def warm_up(
    worker: Worker, fact: EngineFacts, request: LayerRequest, measured: LayerRounds
) -> float:
    """Open an engine in a worker, and call it until its times settle; returns seconds per call."""
    worker.ask(
        "load",
        timeout_s=_LOAD_TIMEOUT_S,
        path=str(fact.path),
        threads=request.threads,
        device=request.devices[fact.path],
    )
    prepared, _ = worker.ask(
        "prepare",
        timeout_s=_LOAD_TIMEOUT_S,
        batch=request.batch,
        image_size=request.image_size or fact.image_size,
        seed=request.seed,
    )
    measured.image_size = prepared["image_size"]
    measured.notes += prepared["notes"]
    windows: Rounds = []
    while not settled(windows):
        if len(windows) >= _MAX_WINDOWS:
            measured.notes.append("its warm-up did not settle")
            break
        windows.append(time_whole(worker, request, calls=_MIN_CALLS, longest_rest_s=0.0))
    return float(np.median(windows[-1])) / 1e3


def _interleave(
    worker: Worker,
    call_s: float,
    request: LayerRequest,
    measured: LayerRounds,
    monitor: Monitor,
    progress: Progress,
) -> None:
    """Interleave whole calls and profiled calls; each gets half of the time of a round."""
    order = np.random.default_rng(request.seed)
    affordable = max(_MIN_CALLS, math.ceil(request.duration_s / ROUNDS / 2 / call_s))
    measured.calls = min(_MAX_CALLS, affordable)
    monitor.begin()
    try:
        for _ in range(ROUNDS):
            for kind in order.permutation(["whole", "layers"]):
                with monitor.computing():
                    if kind == "whole":
                        measured.whole.append(time_whole(worker, request, calls=affordable))
                    else:
                        measured.layers.append(time_layers(worker, request, calls=measured.calls))
            monitor.read()
            progress.advance()
    finally:
        monitor.close()
    measured.conditions = monitor.summary(measured.notes)


def time_whole(
    worker: Worker, request: LayerRequest, *, calls: int, longest_rest_s: float = _LONGEST_REST_S
) -> NDArray[np.float64]:
    """Compute times of whole calls in milliseconds, without profiling."""
    header, arrays = worker.ask(
        "time",
        timeout_s=(calls + 1) * request.call_timeout_s,
        seconds=0.0,
        min_calls=calls,
        min_lead_in=1,
        longest_rest_s=longest_rest_s,
    )
    compute: NDArray[np.float64] = arrays["calls"][header["lead_in"] :, 2] / 1e6
    return compute


def time_layers(worker: Worker, request: LayerRequest, *, calls: int) -> list[LayerInfo]:
    """Median time of each layer over some calls, as the library's profiler reports it."""
    header, _ = worker.ask(
        "layers",
        timeout_s=_LOAD_TIMEOUT_S + calls * request.call_timeout_s,
        calls=calls,
        longest_rest_s=_LONGEST_REST_S,
    )
    return [LayerInfo.model_validate(raw) for raw in header["layers"]]
