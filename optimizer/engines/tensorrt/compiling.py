"""Compiles a checked graph with its options into an engine file, and lists its layers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optimizer.artifacts import scratch_folder, write_atomically
from optimizer.engines.protocol import BuildSettings, Built
from optimizer.engines.tensorrt import rtx
from optimizer.engines.tensorrt.build_log import layers_in_log
from optimizer.engines.tensorrt.channel_factors import write_with_factors
from optimizer.engines.tensorrt.failures import Build, explain
from optimizer.engines.tensorrt.fusion import fusion_note
from optimizer.engines.tensorrt.graph_check import CheckedGraph
from optimizer.engines.tensorrt.inspector import inspect_engine
from optimizer.engines.tensorrt.layers import RawLayer, describe
from optimizer.engines.tensorrt.lean import load_lean_runtime
from optimizer.engines.tensorrt.library import Library
from optimizer.engines.tensorrt.log import BuildLog, make_logger, start
from optimizer.engines.tensorrt.monitor import Watch, interruptible, make_monitor
from optimizer.engines.tensorrt.names import module_path
from optimizer.engines.tensorrt.options import Options, Profile
from optimizer.engines.tensorrt.parsing import create_network, parse_graph
from optimizer.engines.tensorrt.timing_cache import cache_file, store_timing_cache, use_timing_cache
from optimizer.errors import UsageError
from optimizer.graphs.facts import layer_flops
from optimizer.progress import Progress
from optimizer.results import LayerInfo

__all__ = ["BuildPlan", "compile_engine"]

_COMPUTES_INT8 = 80
"""The first compute capability for which TensorRT-RTX has INT8 convolutions."""


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a build needs, already checked.

    Attributes:
        targets: Compute capabilities to compile for; empty for the library's default.
        profiles: Batches to compile for; empty for a graph with a fixed batch.
        device: Name of the GPU that kernels are timed on, for the timing cache.
        notes: Notes so far.
    """

    library: Library
    graph: CheckedGraph
    settings: BuildSettings
    options: Options
    targets: tuple[int, ...] = ()
    profiles: Sequence[Profile] = ()
    device: str = "no-gpu"
    notes: list[str] = field(default_factory=list)


def compile_engine(trt: Any, plan: BuildPlan, output: Path, progress: Progress) -> Built:
    """Compile a graph, write the engine, and list its layers.

    Raises:
        GraphError: The parser rejects the graph.
        UsageError: The workspace limit is too small.
        MissingLibrary, MissingDevice: The library lacks a part, or does not fit the GPU or driver.
        BuildError: The library failed.
        KeyboardInterrupt: Ctrl-C was pressed; nothing was written.
    """
    notes = list(plan.notes)
    log = BuildLog(ignore_missing_driver=plan.library.portable)
    logger = make_logger(trt, log)
    if plan.options.version_compatible:
        load_lean_runtime(str(trt.__version__))
    builder = start(plan.library, trt.Builder, logger, log)
    network = create_network(trt, builder)
    with _compiler_graph(plan, notes) as graph:
        parse_graph(plan.library, trt.OnnxParser(network, logger), network, graph, log)
    config = builder.create_builder_config()
    notes += _configure(trt, config, plan)
    _add_profiles(builder, config, plan, log)
    cache = _timing_cache(trt, config, plan, notes)

    watch = Watch()
    label = f"{plan.library.name} {plan.settings.precision}"
    monitor = make_monitor(trt, progress, label, watch)
    config.progress_monitor = monitor
    started = time.perf_counter()
    with interruptible(watch):
        serialized = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if watch.interrupted:
        raise KeyboardInterrupt
    if watch.failure is not None:
        raise watch.failure
    if serialized is None:
        raise explain(
            Build(
                title=plan.library.title,
                graph=plan.graph.path.name,
                workspace=plan.settings.workspace_bytes,
            ),
            log,
        )
    with write_atomically(output) as temporary, temporary.open("wb") as stream:
        stream.write(serialized)
    if cache is not None:
        store_timing_cache(config, cache)

    raw = _layers(trt, plan, logger, log, serialized)
    if not raw:
        notes.append(f"{plan.library.title} did not list the engine's layers")
    if (note := fusion_note(raw, plan.library.title)) is not None:
        notes.append(note)
    return Built(layers=_describe(raw, plan), seconds=seconds, notes=notes)


# --- options -------------------------------------------------------------------------------------


def _configure(trt: Any, config: Any, plan: BuildPlan) -> list[str]:
    """Set the requested options; returns notes on those that are ignored."""
    options, settings = plan.options, plan.settings
    notes = []
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.opt_level is not None:
        config.builder_optimization_level = settings.opt_level
    if options.sparsity:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none" and not plan.library.portable:
        config.hardware_compatibility_level = {
            "ampere-plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same-compute-capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }[options.hardware_compatibility]
    if plan.library.portable:
        notes += _ignored_options(plan)
        if plan.targets:
            rtx.set_targets(trt, config, plan.targets)
    if settings.threads is not None:
        notes.append("threads: not applicable to a GPU engine; ignored")
    return notes


def _ignored_options(plan: BuildPlan) -> list[str]:
    """Notes on options that TensorRT-RTX accepts and ignores."""
    requested = {
        "hardware compatibility": plan.options.hardware_compatibility != "none",
        "optimization level": plan.settings.opt_level is not None,
        "sparsity": plan.options.sparsity,
        "TF32": plan.options.tf32,
        "timing cache": plan.settings.timing_cache is not None,
    }
    return [
        f"{option}: {plan.library.title} compiles ahead of time without it; ignored"
        for option, is_set in requested.items()
        if is_set
    ]


@contextlib.contextmanager
def _compiler_graph(plan: BuildPlan, notes: list[str]) -> Iterator[CheckedGraph]:
    """The graph to compile, rewritten where that makes it faster; see `channel_factors`."""
    options = plan.options
    rewritten = (
        plan.library.portable
        and plan.settings.precision in {"int8", "mixed"}
        # A refit looks weights up by their names in the graph.
        and not (options.refittable or options.strip_weights)
        # For older GPUs, weights are dequantized before the convolution: FP16 loses the factors then.
        and min(plan.targets, default=_COMPUTES_INT8) >= _COMPUTES_INT8
    )
    with scratch_folder("graph") as folder:
        path = folder / plan.graph.path.name
        changed = write_with_factors(plan.graph.path, path) if rewritten else 0
        if not changed:
            yield plan.graph
            return
        notes.append(
            f"{changed} INT8 convolutions are compiled with one weight scale and a factor per channel "
            "after it, so that they write FP16"
        )
        yield replace(plan.graph, path=path)


def _add_profiles(builder: Any, config: Any, plan: BuildPlan, log: BuildLog) -> None:
    source = plan.graph.input
    image = tuple(d for d in source.shape[1:] if d is not None)
    for batches in plan.profiles:
        profile = builder.create_optimization_profile()
        low, best, high = ((batch, *image) for batch in batches)
        profile.set_shape(source.name, low, best, high)
        if config.add_optimization_profile(profile) < 0:
            raise UsageError(
                f"{plan.library.title} rejects profile {':'.join(map(str, batches))}: "
                f"{log.reason('no reason given')}",
                hint="--profile min:opt:max, as in 1:8:32",
            )


def _timing_cache(trt: Any, config: Any, plan: BuildPlan, notes: list[str]) -> Path | None:
    # TensorRT-RTX times nothing during a build; its timing caches are empty.
    if plan.settings.timing_cache is None or plan.library.portable:
        return None
    path = cache_file(
        plan.settings.timing_cache, plan.library.name, str(trt.__version__), plan.device
    )
    notes += use_timing_cache(config, path)
    return path


# --- results -------------------------------------------------------------------------------------


def _layers(
    trt: Any, plan: BuildPlan, logger: Any, log: BuildLog, serialized: Any
) -> list[RawLayer]:
    """The layers from the inspector if the engine can be opened, else from the log.

    If building needs a GPU, the engine can be opened on it. A stripped engine is not opened because
    it lacks its weights, a version-compatible one because it would run host code.
    """
    can_open = not (
        plan.library.portable or plan.options.strip_weights or plan.options.version_compatible
    )
    if can_open:
        runtime = start(plan.library, trt.Runtime, logger, log)
        engine = runtime.deserialize_cuda_engine(serialized)
        if engine is not None:
            return inspect_engine(trt, engine, _shaped_context(trt, engine, plan))
    return layers_in_log(log.of("VERBOSE", "INFO"))


def _shaped_context(trt: Any, engine: Any, plan: BuildPlan) -> Any:
    """An execution context with the input shape set; ``None`` if the library cannot create one.

    It allocates no GPU memory, since nothing is computed.
    """
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        return None
    name = plan.graph.input.name
    shape = tuple(engine.get_tensor_shape(name))
    if plan.graph.batch is None:
        shape = tuple(engine.get_tensor_profile_shape(name, 0)[1])
    if not context.set_input_shape(name, shape) or context.infer_shapes():
        return None
    return context


def _describe(raw: list[RawLayer], plan: BuildPlan) -> list[LayerInfo]:
    graph = plan.graph
    layers = describe(
        raw,
        nodes={path for name in graph.nodes if (path := module_path(name))},
        weighted={path for name in graph.weights if (path := module_path(name))},
        tf32=plan.options.tf32 and not plan.library.portable,
        batch=graph.batch or (plan.profiles[0][1] if plan.profiles else 1),
    )
    flops = {module_path(name) or name: count for name, count in layer_flops(graph.path).items()}
    sums = [sum(flops.get(name, 0) for name in layer.torch_names) for layer in layers]
    return [
        layer.model_copy(update={"flops": total or None})
        for layer, total in zip(layers, sums, strict=True)
    ]
