"""Layer profiles: where an engine spends its time; returns the contents of ``profile.json``.

Engines are profiled one after the other, each in its own worker process
(`optimizer.profiling.bench_worker`); comparing engines is the task of `bench`. Each round times the
whole call without profiling and the layers with it, in random order. A layer's time is its median over
the calls of a round, then over rounds, with a bootstrap interval over rounds. Time of the whole call
outside all layers is reported separately and not assigned to any layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import Cache, digest, read_manifest
from optimizer.engines.opening import graph_of, rebuild_command
from optimizer.engines.placement import assign_devices, runs_on
from optimizer.environment import fingerprint
from optimizer.errors import ArtifactError, EnvironmentFault, UsageError
from optimizer.options import ProfileOptions, takes_options
from optimizer.profiling import intervals, roofline
from optimizer.profiling.blocks import over_rounds, summed, timed_blocks, timed_layers
from optimizer.profiling.ceilings import Effort, ceilings
from optimizer.profiling.conditions import Monitor, gpus_of, merge_conditions
from optimizer.profiling.engine_facts import EngineFacts, check_options, describe_engines
from optimizer.profiling.harness import settled
from optimizer.profiling.worker_process import Worker, WorkerFailed
from optimizer.progress import Progress, Silent
from optimizer.results import (
    Ceilings,
    Conditions,
    EngineProfile,
    LayerInfo,
    ProfileResult,
)
from optimizer.targets.hardware import cpu_features

__all__ = ["HEADLINE", "ROUNDS", "profile"]

HEADLINE = (
    "layer times are medians over rounds from the engine's own profiler; the whole call was timed "
    "without the profiler, in the same process and rounds"
)
ROUNDS = 12
_MIN_CALLS, _MAX_CALLS = 3, 20
"""Profiled calls per round. More would hardly change the median, and they take long with libraries
that open the engine again for profiling."""
_LOAD_TIMEOUT_S = 600.0
_LONGEST_REST_S = 0.25
_MAX_WINDOWS = 20
Rounds = list[NDArray[np.float64]]


@takes_options(ProfileOptions)
def profile(
    engines: Sequence[Path],
    options: ProfileOptions,
    *,
    effort: Effort | None = None,
    cache: Cache | None = None,
    call_timeout_s: float = 60.0,
    progress: Progress | None = None,
) -> ProfileResult:
    """Time engines layer by layer and compare the layers with the machine's ceilings.

    PyTorch runs on the engines' device if it can; see `optimizer.engines.placement.assign_devices`. An engine
    takes longer than ``duration`` if opening its profiled copy, or `ROUNDS` rounds of three calls,
    takes longer. GPU engines are never compared with the ceilings of the CPU.

    Args:
        engines: Engine files, or checkpoints (PyTorch eager).
        options: Settings to measure and duration.
        effort: How thoroughly ceilings are measured; ``None`` for the default.
        cache: Where ceilings are stored; ``None`` stores nothing.
        call_timeout_s: An engine fails if a call takes longer.
        progress: Receives progress updates, between measurements only.

    Raises:
        UsageError: An engine or option is invalid, or a batch size is outside an engine's range.
        ArtifactError: The graph that an engine was built from is missing or a different one.
        EnvironmentFault: No engine can run on this machine.
    """
    progress = progress or Silent()
    if not engines:
        raise UsageError("no engine to profile", hint="resnet-opt profile ENGINE…")
    batch, threads = options.batch, options.threads or cpu_features().physical_cores
    check_options(
        batches=[batch],
        threads=[threads],
        streams=[1],
        duration_s=options.duration,
        min_effect=0.02,
        call_timeout_s=call_timeout_s,
    )
    paths = [Path(engine) for engine in engines]
    facts = describe_engines(paths, [batch])
    graphs = [_graph_beside(fact) for fact in facts]
    devices = assign_devices(paths, options.device)
    on_cpu = [_on_cpu(fact, devices[fact.path]) for fact in facts]
    machine_ceilings = None
    if options.ceilings and any(on_cpu):
        machine_ceilings = ceilings(
            threads, cache=cache, remeasure=options.remeasure, effort=effort, progress=progress
        )
    request = _Request(
        batch, options.image_size, threads, options.duration, devices, options.seed, call_timeout_s
    )
    profiled, conditions = [], []
    for fact, graph, cpu in zip(facts, graphs, on_cpu, strict=True):
        measured = _measure(fact, request, progress)
        profiled.append(
            _evaluate(fact, graph, measured, request, machine_ceilings if cpu else None)
        )
        if measured.conditions is not None:
            conditions.append((measured.conditions, len(measured.layers)))
    if all(p.status in {"unavailable", "built-not-run"} for p in profiled):
        raise EnvironmentFault(f"no engine can run here: {profiled[0].error}")
    return ProfileResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=fingerprint(),
        headline=HEADLINE,
        engines=profiled,
        ceilings=machine_ceilings,
        ceilings_note=_ceilings_note(enabled=options.ceilings, on_cpu=on_cpu),
        conditions=merge_conditions(conditions) if conditions else None,
        settings={
            "batch": batch,
            "image_size": options.image_size,
            "threads": threads,
            "duration_s": options.duration,
            "device": options.device,
            "rounds": ROUNDS,
            "seed": options.seed,
            "overhead_below": roofline.OVERHEAD_BELOW,
        },
    )


def _ceilings_note(*, enabled: bool, on_cpu: Sequence[bool]) -> str | None:
    if not enabled:
        return "ceilings: not measured, as requested"
    if all(on_cpu):
        return None
    return "ceilings: not measured on GPUs, so GPU layers have no verdict"


def _on_cpu(fact: EngineFacts, device: str | None) -> bool:
    used = runs_on(fact.path, device)
    if used is None:  # a third-party backend: its manifest states the device
        return bool((read_manifest(fact.path).device or {}).get("kind") == "cpu")
    return used == "cpu"


def _graph_beside(fact: EngineFacts) -> Path | None:
    """The graph file next to the engine; ``None`` for PyTorch, which reports its own operations.

    Raises:
        ArtifactError: The graph is missing, or it is not the one the engine was built from.
    """
    if fact.backend == "torch":
        return None
    manifest = read_manifest(fact.path)
    graph = graph_of(fact.path)
    built_from = next((i.sha256 for i in manifest.inputs if i.role == "graph"), None)
    if graph is None:
        raise ArtifactError(
            f"{fact.name}.graph.onnx is missing: profiling needs the graph that {fact.name} was built "
            "from, to map layers to modules and operations",
            hint=f"copy it next to the engine, or {rebuild_command(fact.path, manifest)}",
        )
    if built_from is not None and digest(graph) != built_from:
        raise ArtifactError(
            f"{graph.name} is not the graph {fact.name} was built from (sha256 differs)",
            hint=rebuild_command(fact.path, manifest),
        )
    return graph


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    batch: int
    image_size: int | None
    threads: int
    duration_s: float
    devices: Mapping[Path, str | None]
    seed: int
    call_timeout_s: float


@dataclass
class _Measured:
    """Times of whole calls and of layers, per round."""

    whole: Rounds = field(default_factory=list)
    layers: list[list[LayerInfo]] = field(default_factory=list)
    calls: int = 0
    image_size: int | None = None
    failure: WorkerFailed | None = None
    conditions: Conditions | None = None
    notes: list[str] = field(default_factory=list)


def _measure(fact: EngineFacts, request: _Request, progress: Progress) -> _Measured:
    """Profile one engine in a worker process.

    Raises:
        UsageError: The engine cannot be opened, or not with this batch, or has no layer times.
    """
    measured = _Measured()
    progress.start(f"profile {fact.name}", total=ROUNDS)
    worker: Worker | None = None
    try:
        worker = Worker(request.threads)
        call_s = _warm_up(worker, fact, request, measured)
        monitor = Monitor([worker.pid], gpus=gpus_of([(fact.path, request.devices[fact.path])]))
        _rounds(worker, call_s, request, measured, monitor, progress)
    except WorkerFailed as failure:
        if failure.usage:
            raise UsageError(f"{fact.name}: {failure.message}") from None
        measured.failure = failure
    finally:
        if worker is not None:
            worker.close()
    progress.finish(measured.failure.message if measured.failure else f"{ROUNDS} rounds")
    return measured


def _warm_up(worker: Worker, fact: EngineFacts, request: _Request, measured: _Measured) -> float:
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
        windows.append(_whole(worker, request, calls=_MIN_CALLS, longest_rest_s=0.0))
    return float(np.median(windows[-1])) / 1e3


def _rounds(
    worker: Worker,
    call_s: float,
    request: _Request,
    measured: _Measured,
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
                        measured.whole.append(_whole(worker, request, calls=affordable))
                    else:
                        measured.layers.append(_layers(worker, request, calls=measured.calls))
            monitor.read()
            progress.advance()
    finally:
        monitor.close()
    measured.conditions = monitor.summary(measured.notes)


def _whole(
    worker: Worker, request: _Request, *, calls: int, longest_rest_s: float = _LONGEST_REST_S
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


def _layers(worker: Worker, request: _Request, *, calls: int) -> list[LayerInfo]:
    header, _ = worker.ask(
        "layers",
        timeout_s=_LOAD_TIMEOUT_S + calls * request.call_timeout_s,
        calls=calls,
        longest_rest_s=_LONGEST_REST_S,
    )
    return [LayerInfo.model_validate(raw) for raw in header["layers"]]


# --- evaluating ----------------------------------------------------------------------------------


def _evaluate(
    fact: EngineFacts,
    graph: Path | None,
    measured: _Measured,
    request: _Request,
    ceilings: Ceilings | None,
) -> EngineProfile:
    result = EngineProfile(
        name=fact.name,
        file=str(fact.path),
        backend=fact.backend,
        precision=fact.precision,
        batch=request.batch,
        image_size=measured.image_size,
        threads=request.threads,
        notes=measured.notes,
    )
    if measured.failure is not None:
        failed = {"status": measured.failure.status, "error": measured.failure.message}
        return result.model_copy(update=failed)
    whole = intervals.median(measured.whole, seed=request.seed)
    layers, times = timed_layers(
        measured.layers, graph, batch=request.batch, ceilings=ceilings, seed=request.seed
    )
    total, _ = over_rounds(summed(list(times.values())), request.seed)
    return result.model_copy(
        update={
            "rounds": len(measured.layers),
            "calls": measured.calls,
            "whole_ms": whole.value,
            "whole_ci95_ms": whole.ci95,
            "layers_ms": total,
            "outside_ms": whole.value - total,
            "layers": layers,
            "blocks": timed_blocks(layers, times, request.seed),
        }
    )
