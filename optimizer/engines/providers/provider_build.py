"""Building and opening engines of ONNX Runtime for a provider of a GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.engines.layer_annotation import annotate
from optimizer.engines.protocol import BuildSettings, Built
from optimizer.engines.providers.partition import (
    ASSIGNMENT_KEY,
    assigned,
    describe_partition,
    graph_layers,
)
from optimizer.engines.providers.session import ProviderSession, open_with_provider
from optimizer.engines.providers.settings import DEFAULT_PROFILE, Choice, with_build_settings
from optimizer.engines.providers.status import check_usable, provider_status
from optimizer.engines.providers.table import CPU, CUDA
from optimizer.engines.tensorrt.graph_check import check_graph
from optimizer.errors import BuildError
from optimizer.graphs.facts import graph_facts
from optimizer.graphs.onnx_files import copy_as_one_file
from optimizer.progress import Progress
from optimizer.results import LayerInfo

__all__ = ["build_with_provider", "load_with_provider", "opened_layers"]


def build_with_provider(
    graph: Path,
    output: Path,
    settings: BuildSettings,
    choice: Choice,
    options: Any,
    progress: Progress,
) -> Built:
    """Let a provider take a graph, see which nodes it took, and write the graph as the engine.

    Raises:
        MissingLibrary, MissingDevice: The provider cannot be used here.
        GraphError: The graph is damaged, or INT8 that is not lowered for TensorRT.
        BuildError: A layer with weights would run on the CPU.
        UsageError: A setting that the provider does not have.
    """
    choice = _resolved(choice, settings, graph)
    index = check_usable(choice.provider, None)
    progress.start(f"onnxruntime {settings.precision}, provider {choice.provider.name}", total=2)
    check_graph(graph)
    options.add_session_config_entry(ASSIGNMENT_KEY, "1")
    started = time.perf_counter()
    session = open_with_provider(graph, options, choice, index)
    seconds = time.perf_counter() - started
    progress.advance(note="reading the layers")
    layers = opened_layers(session, graph, choice)
    copy_as_one_file(graph, output)
    progress.finish(f"{len(layers)} layers")
    notes = [*describe_partition(choice, layers), "the provider compiles when the engine is opened"]
    if settings.options.get("storage_only"):
        notes.append(f"{settings.precision} storage, computed in what the layers say")
    return Built(layers=layers, seconds=seconds, notes=notes)


def opened_layers(session: Any, graph: Path, choice: Choice) -> list[LayerInfo]:
    """The layers of an opened graph with their operations, none of them on the CPU.

    Raises:
        BuildError: One is on the CPU although a provider of a GPU was asked for.
    """
    layers = annotate(graph_layers(graph, choice, assigned(session)), graph)
    left = [layer.name for layer in layers if layer.tactic == CPU.registered]
    if left and choice.provider is not CPU:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise BuildError(
            f"provider {choice.provider.name} does not take {', '.join(left[:3])}{more}: "
            "the CPU would compute it",
            hint="another --precision or provider; resnet-opt doctor tells which are usable",
        )
    return layers


def load_with_provider(
    engine: Path, settings: Mapping[str, Any], choice: Choice, options: Any, device: str | None
) -> ProviderSession:
    """Open an engine with the provider and the options that it was built with.

    Args:
        engine: The engine file.
        settings: The settings of its manifest.
        choice: What they say of the provider.
        options: Session options.
        device: Which GPU.

    Raises:
        MissingLibrary, MissingDevice: The provider cannot be used here.
        UsageError: ``device`` is no device's name.
        BuildError: A layer with weights would run on the CPU here.
    """
    index = check_usable(choice.provider, device)
    profile = settings.get("profile")
    built = BuildSettings(
        precision=str(settings.get("precision")),
        profile=tuple(profile) if profile else None,
        workspace_bytes=settings.get("workspace_bytes"),
        opt_level=settings.get("opt_level"),
    )
    choice = _resolved(choice, built, engine)
    options.add_session_config_entry(ASSIGNMENT_KEY, "1")
    session = open_with_provider(engine, options, choice, index)
    layers = opened_layers(session, engine, choice)
    # A plugin works with the onnxruntime for CPUs too, which cannot allocate on the GPU: then the
    # plugin copies, inside of the computation.
    bound_on_gpu = choice.provider.plugin is None or provider_status(CUDA).usable
    memory = ("cuda", index) if bound_on_gpu else ("cpu", 0)
    return ProviderSession(session, layers, memory, _batches(choice, built, engine))


def _resolved(choice: Choice, settings: BuildSettings, graph: Path) -> Choice:
    facts = graph_facts(graph)
    return with_build_settings(choice, settings, facts.input_name, facts.input_shape)


def _batches(choice: Choice, settings: BuildSettings, graph: Path) -> tuple[int, int | None]:
    fixed = graph_facts(graph).input_shape[0]
    if fixed is not None:
        return fixed, fixed
    if choice.provider.profile_options is None:
        return 1, None
    low, _, high = settings.profile or DEFAULT_PROFILE
    return low, high
