"""Layer profiles: where an engine spends its time; returns the contents of ``profile.json``.

Engines are profiled one after the other, each in its own worker process
(`optimizer.profiling.bench_worker`); comparing engines is the task of `bench`. Each round times the
whole call without profiling and the layers with it, in random order. A layer's time is its median over
the calls of a round, then over rounds, with a bootstrap interval over rounds. Time of the whole call
outside all layers is reported separately and not assigned to any layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from optimizer.artifacts import Cache, digest, read_manifest
from optimizer.engines.opening import graph_of, rebuild_command
from optimizer.engines.placement import assign_devices, runs_on
from optimizer.environment import fingerprint
from optimizer.errors import ArtifactError, EnvironmentFault, UsageError
from optimizer.options import ProfileOptions, takes_options
from optimizer.profiling import intervals, layer_rounds, roofline
from optimizer.profiling.blocks import over_rounds, summed, timed_blocks, timed_layers
from optimizer.profiling.ceilings import Effort, ceilings
from optimizer.profiling.conditions import merge_conditions
from optimizer.profiling.engine_facts import EngineFacts, check_options, describe_engines
from optimizer.profiling.layer_rounds import LayerRequest, LayerRounds, measure_layers
from optimizer.progress import Progress, Silent
from optimizer.results import (
    Ceilings,
    EngineProfile,
    ProfileResult,
)
from optimizer.targets.hardware import cpu_features

__all__ = ["HEADLINE", "profile"]

HEADLINE = (
    "layer times are medians over rounds from the engine's own profiler; the whole call was timed "
    "without the profiler, in the same process and rounds"
)


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
    request = LayerRequest(
        batch, options.image_size, threads, options.duration, devices, options.seed, call_timeout_s
    )
    profiled, conditions = [], []
    for fact, graph, cpu in zip(facts, graphs, on_cpu, strict=True):
        measured = measure_layers(fact, request, progress)
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
            "rounds": layer_rounds.ROUNDS,
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


# --- evaluating ----------------------------------------------------------------------------------


def _evaluate(
    fact: EngineFacts,
    graph: Path | None,
    measured: LayerRounds,
    request: LayerRequest,
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
