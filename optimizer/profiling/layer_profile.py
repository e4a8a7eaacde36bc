"""Layer by layer: where the time of an engine goes, engines in, ``profile.json`` out.

Each engine is profiled in a worker process of its own (`optimizer.profiling.bench_worker`), one after the
other: to compare engines is what `bench` is for. In every round the whole call is timed without
profiling and the layers with it, in an order drawn anew; a layer's time is its median over the
calls of a round, then over rounds, with an interval by bootstrap over rounds. What the layers leave
of the whole call is shown and given to none.
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
from optimizer.profiling.conditions import Monitor, joined
from optimizer.profiling.engine_facts import EngineFacts, check_options, describe_engines
from optimizer.profiling.harness import settled
from optimizer.profiling.process import Worker, WorkerFailed
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
    "the time of each layer by the engine's own profiler, medians over rounds; the whole call "
    "was timed without it, in the same process and rounds"
)
ROUNDS = 12
_FEWEST_CALLS, _MOST_CALLS = 3, 20
"""Profiled calls of a round; more would hardly move its median, and take long where a library
opens the engine anew for them."""
_LOAD_TIMEOUT_S = 600.0
_LONGEST_REST_S = 0.25
_WINDOWS_AT_MOST = 20
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

    PyTorch runs where the engines run, if it can; see `optimizer.engines.placement.assign_devices`. The
    rounds of an engine exceed ``duration`` where opening its profiled copy, or `ROUNDS` rounds of
    three calls, take longer. GPU engines are never compared with the ceilings of the CPU.

    Args:
        engines: Engine files, or checkpoints (PyTorch eager).
        options: What is measured, and how long.
        effort: How much is measured of the ceilings.
        cache: Where the ceilings are kept; ``None`` keeps nothing.
        call_timeout_s: A call that takes longer hangs, and its engine has failed.
        progress: Where steps are reported, between measurements.

    Raises:
        UsageError: An engine, a batch outside an engine's range, or an option is wrong.
        ArtifactError: The graph an engine was built from is not beside it, or another one is.
        EnvironmentFault: None of the engines can run on this machine.
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
    found = None
    if options.ceilings and any(on_cpu):
        found = ceilings(
            threads, cache=cache, remeasure=options.remeasure, effort=effort, progress=progress
        )
    asked = _Asked(
        batch, options.image_size, threads, options.duration, devices, options.seed, call_timeout_s
    )
    profiled, conditions = [], []
    for fact, graph, cpu in zip(facts, graphs, on_cpu, strict=True):
        measured = _measure(fact, asked, progress)
        profiled.append(_evaluated(fact, graph, measured, asked, found if cpu else None))
        if measured.conditions is not None:
            conditions.append((measured.conditions, len(measured.layers)))
    if all(one.status in {"unavailable", "built-not-run"} for one in profiled):
        raise EnvironmentFault(f"no engine can run here: {profiled[0].error}")
    return ProfileResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=fingerprint(),
        headline=HEADLINE,
        engines=profiled,
        ceilings=found,
        ceilings_note=_ceilings_note(roofs=options.ceilings, on_cpu=on_cpu),
        conditions=joined(conditions) if conditions else None,
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


def _ceilings_note(*, roofs: bool, on_cpu: Sequence[bool]) -> str | None:
    if not roofs:
        return "ceilings: not measured, as asked"
    if all(on_cpu):
        return None
    return "ceilings: not measured on GPUs, so their layers have times and no verdict"


def _on_cpu(fact: EngineFacts, device: str | None) -> bool:
    where = runs_on(fact.path, device)
    if where is None:  # a third party's, which says so itself
        return bool((read_manifest(fact.path).device or {}).get("kind") == "cpu")
    return where == "cpu"


def _graph_beside(fact: EngineFacts) -> Path | None:
    """The graph that tells the operations; PyTorch's modules tell their own.

    Raises:
        ArtifactError: It is missing, or it is not the one the engine was built from.
    """
    if fact.backend == "torch":
        return None
    manifest = read_manifest(fact.path)
    graph = graph_of(fact.path)
    built_from = next((i.sha256 for i in manifest.inputs if i.role == "graph"), None)
    if graph is None:
        raise ArtifactError(
            f"{fact.name}.graph.onnx, the graph it was built from, is not beside {fact.name}: "
            "without it nobody knows which modules its layers are and what they compute",
            hint=f"copy it there, or {rebuild_command(fact.path, manifest)}",
        )
    if built_from is not None and digest(graph) != built_from:
        raise ArtifactError(
            f"{graph.name} is not the graph {fact.name} was built from (sha256 differs)",
            hint=rebuild_command(fact.path, manifest),
        )
    return graph


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    batch: int
    image_size: int | None
    threads: int
    duration_s: float
    devices: Mapping[Path, str | None]
    seed: int
    call_timeout_s: float


@dataclass
class _Measured:
    """What one worker told: whole calls and layers, round by round."""

    whole: Rounds = field(default_factory=list)
    layers: list[list[LayerInfo]] = field(default_factory=list)
    calls: int = 0
    image_size: int | None = None
    failure: WorkerFailed | None = None
    conditions: Conditions | None = None
    notes: list[str] = field(default_factory=list)


def _measure(fact: EngineFacts, asked: _Asked, progress: Progress) -> _Measured:
    """Profile one engine in a process of its own.

    Raises:
        UsageError: It cannot be opened as it is, or not with this batch, or has no layer times.
    """
    measured = _Measured()
    progress.start(f"profile {fact.name}", total=ROUNDS)
    worker: Worker | None = None
    try:
        worker = Worker(asked.threads)
        call_s = _warmed_up(worker, fact, asked, measured)
        _rounds(worker, call_s, asked, measured, progress)
    except WorkerFailed as failure:
        if failure.usage:
            raise UsageError(f"{fact.name}: {failure.message}") from None
        measured.failure = failure
    finally:
        if worker is not None:
            worker.close()
    progress.finish(measured.failure.message if measured.failure else f"{ROUNDS} rounds")
    return measured


def _warmed_up(worker: Worker, fact: EngineFacts, asked: _Asked, measured: _Measured) -> float:
    worker.ask(
        "load",
        timeout_s=_LOAD_TIMEOUT_S,
        path=str(fact.path),
        threads=asked.threads,
        device=asked.devices[fact.path],
    )
    prepared, _ = worker.ask(
        "prepare",
        timeout_s=_LOAD_TIMEOUT_S,
        batch=asked.batch,
        image_size=asked.image_size or fact.image_size,
        seed=asked.seed,
    )
    measured.image_size = prepared["image_size"]
    measured.notes += prepared["notes"]
    windows: Rounds = []
    while not settled(windows):
        if len(windows) >= _WINDOWS_AT_MOST:
            measured.notes.append("its warm-up did not settle")
            break
        windows.append(_whole(worker, asked, calls=_FEWEST_CALLS, longest_rest_s=0.0))
    return float(np.median(windows[-1])) / 1e3


def _rounds(
    worker: Worker, call_s: float, asked: _Asked, measured: _Measured, progress: Progress
) -> None:
    """Whole calls and layers in turns; both get half of the time of a round."""
    order = np.random.default_rng(asked.seed)
    affordable = max(_FEWEST_CALLS, math.ceil(asked.duration_s / ROUNDS / 2 / call_s))
    measured.calls = min(_MOST_CALLS, affordable)
    monitor = Monitor([worker.pid])
    monitor.begin()
    try:
        for _ in range(ROUNDS):
            for what in order.permutation(["whole", "layers"]):
                with monitor.computing():
                    if what == "whole":
                        measured.whole.append(_whole(worker, asked, calls=affordable))
                    else:
                        measured.layers.append(_layers(worker, asked, calls=measured.calls))
            monitor.read()
            progress.advance()
    finally:
        monitor.close()
    measured.conditions = monitor.summary(measured.notes)


def _whole(
    worker: Worker, asked: _Asked, *, calls: int, longest_rest_s: float = _LONGEST_REST_S
) -> NDArray[np.float64]:
    """Milliseconds of computing whole calls, without profiling."""
    header, arrays = worker.ask(
        "time",
        timeout_s=(calls + 1) * asked.call_timeout_s,
        seconds=0.0,
        min_calls=calls,
        min_lead_in=1,
        longest_rest_s=longest_rest_s,
    )
    compute: NDArray[np.float64] = arrays["calls"][header["lead_in"] :, 2] / 1e6
    return compute


def _layers(worker: Worker, asked: _Asked, *, calls: int) -> list[LayerInfo]:
    header, _ = worker.ask(
        "layers",
        timeout_s=_LOAD_TIMEOUT_S + calls * asked.call_timeout_s,
        calls=calls,
        longest_rest_s=_LONGEST_REST_S,
    )
    return [LayerInfo.model_validate(raw) for raw in header["layers"]]


# --- evaluating ----------------------------------------------------------------------------------


def _evaluated(
    fact: EngineFacts,
    graph: Path | None,
    measured: _Measured,
    asked: _Asked,
    ceilings: Ceilings | None,
) -> EngineProfile:
    result = EngineProfile(
        name=fact.name,
        file=str(fact.path),
        backend=fact.backend,
        precision=fact.precision,
        batch=asked.batch,
        image_size=measured.image_size,
        threads=asked.threads,
        notes=measured.notes,
    )
    if measured.failure is not None:
        failed = {"status": measured.failure.status, "error": measured.failure.message}
        return result.model_copy(update=failed)
    whole = intervals.median(measured.whole, seed=asked.seed)
    layers, times = timed_layers(
        measured.layers, graph, batch=asked.batch, ceilings=ceilings, seed=asked.seed
    )
    total, _ = over_rounds(summed(list(times.values())), asked.seed)
    return result.model_copy(
        update={
            "rounds": len(measured.layers),
            "calls": measured.calls,
            "whole_ms": whole.value,
            "whole_ci95_ms": whole.ci95,
            "layers_ms": total,
            "outside_ms": whole.value - total,
            "layers": layers,
            "blocks": timed_blocks(layers, times, asked.seed),
        }
    )
