"""Builds and opens ONNX Runtime engines for GPU providers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.engines.layer_annotation import annotate
from optimizer.engines.protocol import BuildSettings, Built
from optimizer.engines.providers.partition import (
    ASSIGNMENT_KEY,
    describe_partition,
    graph_layers,
    node_providers,
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
    """Open a graph with a provider, check which nodes it runs, and store the graph as the engine.

    Raises:
        MissingLibrary, MissingDevice: The provider cannot be used here.
        GraphError: The graph is damaged, or is INT8 but not quantized for TensorRT.
        BuildError: A layer with weights would run on the CPU.
        UsageError: The provider does not have one of the settings.
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
        notes.append(f"{settings.precision} storage; the layers list the compute precision")
    return Built(layers=layers, seconds=seconds, notes=notes)


def opened_layers(session: Any, graph: Path, choice: Choice) -> list[LayerInfo]:
    """The layers of an opened graph, checked not to run on the CPU.

    Raises:
        BuildError: A layer runs on the CPU although a GPU provider was requested.
    """
    layers = annotate(graph_layers(graph, choice, node_providers(session)), graph)
    on_cpu = [layer.name for layer in layers if layer.tactic == CPU.registered]
    if on_cpu and choice.provider is not CPU:
        more = f" and {len(on_cpu) - 3} more" if len(on_cpu) > 3 else ""
        raise BuildError(
            f"provider {choice.provider.name} does not support {', '.join(on_cpu[:3])}{more}: "
            "the CPU would compute it",
            hint="try another --precision or provider; resnet-opt doctor lists the usable ones",
        )
    return layers


def load_with_provider(
    engine: Path, settings: Mapping[str, Any], choice: Choice, options: Any, device: str | None
) -> ProviderSession:
    """Open an engine with the provider and options that it was built with.

    Args:
        engine: The engine file.
        settings: The settings of its manifest.
        choice: The provider and options from these settings.
        options: Session options.
        device: GPU such as ``cuda:1``; ``None`` for the first.

    Raises:
        MissingLibrary, MissingDevice: The provider cannot be used here.
        UsageError: ``device`` is not a valid device name.
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
    # A plugin also works with the CPU build of onnxruntime, which cannot allocate GPU memory. Then
    # the plugin copies during the computation.
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
