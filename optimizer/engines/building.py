"""Builds an engine: checks options first, compiles in a child process, writes atomically."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.artifacts import (
    Artifact,
    Cache,
    DisabledCache,
    Input,
    Plan,
    digest,
    find_manifest,
    library_versions,
    manifest_path,
    produce,
    read_manifest,
    write_pair_atomically,
)
from optimizer.engines.build_process import build_in_child
from optimizer.engines.build_settings import check_supported
from optimizer.engines.opening import GRAPH_SUFFIX
from optimizer.engines.protocol import Backend, BuildSettings
from optimizer.engines.registry import get_backend
from optimizer.errors import MissingLibrary, UsageError
from optimizer.graphs.facts import GraphFacts, graph_facts
from optimizer.graphs.onnx_files import copy_as_one_file
from optimizer.models.model_sources import is_checkpoint
from optimizer.processes import Limits
from optimizer.progress import Progress, Silent

__all__ = ["Limits", "build_engine", "check_buildable", "copy_graph_beside"]


def build_engine(
    graph: Path,
    output: Path,
    backend_name: str,
    settings: BuildSettings,
    *,
    cache: Cache | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a graph into an engine with a manifest, and copy the graph beside it.

    Args:
        graph: ONNX file with explicit precision (a checkpoint for the ``torch`` engine).
        output: The engine file.
        backend_name: Name of the backend.
        settings: Options of the build; ``precision`` must be that of the graph.
        cache: Cache of artifacts; ``None`` to always build.
        limits: Limits on memory and time; not part of the cache key.
        progress: Receives progress updates.

    Raises:
        GraphError, UsageError: The graph or an option is invalid.
        EnvironmentFault: The backend cannot build here.
        BuildError: The library failed, crashed, or exceeded a limit.
    """
    backend = get_backend(backend_name)
    backend_settings = check_buildable(backend, settings)
    facts = None if is_checkpoint(graph) else graph_facts(graph)
    _check_precision(facts, settings, graph)
    source = facts or _checkpoint_facts(graph)

    plan = Plan(
        kind="engine",
        settings={
            "backend": backend_name,
            **_recorded(settings),
            **backend_settings,
            "arch": source.arch,
            **({"detector": source.detector} if source.detector is not None else {}),
            **({"preprocessing_assumed": True} if _preprocessing_assumed(source) else {}),
            **({"keep": facts.keep} if facts is not None and facts.keep else {}),
        },
        inputs=[Input.of("graph" if facts else "checkpoint", graph)],
        libraries=library_versions(*backend.libraries),
        device=backend.device(),
        preprocessing=source.preprocessing,
        classes=source.classes,
    )

    def write(path: Path) -> dict[str, Any]:
        built, peak = build_in_child(
            backend, graph, path, settings, limits or Limits(), progress or Silent()
        )
        return {
            "layers": [layer.model_dump(exclude_defaults=True) for layer in built.layers],
            "build_s": built.seconds,
            "build_peak_bytes": peak,
            "notes": [*built.notes, *(facts.notes if facts is not None else ())],
            "image_size": source.image_size,
            **({"built_on": built.machine} if built.machine else {}),
        }

    engine = produce(plan, output, write, cache=cache)
    if facts is not None:
        copy_graph_beside(graph, output)
    return engine


def check_buildable(backend: Backend, settings: BuildSettings) -> dict[str, Any]:
    """Refuse a build that cannot succeed here, before anything is computed.

    Returns:
        The settings that the backend adds to the manifest.

    Raises:
        MissingLibrary: The backend cannot build here.
        UnsupportedPrecision: The backend does not compute this precision.
        UsageError: The backend does not have one of the options.
    """
    check_supported(backend.name, settings)
    status = backend.availability()
    if not status.can_build:
        raise MissingLibrary(f"cannot build for {backend.name}: {status.reason}", hint=status.hint)
    return backend.engine_settings(settings)


@dataclass(frozen=True)
class _CheckpointFacts:
    """What an engine's manifest needs from a checkpoint; the counterpart of `GraphFacts`."""

    arch: str
    image_size: int
    preprocessing: dict[str, Any]
    preprocessing_assumed: bool
    classes: list[str] | None
    detector: dict[str, Any] | None


def _checkpoint_facts(path: Path) -> _CheckpointFacts:
    from optimizer.models import load_model

    model = load_model(str(path))
    return _CheckpointFacts(
        arch=model.arch,
        image_size=model.image_size,
        preprocessing=model.preprocessing.to_dict(),
        preprocessing_assumed=model.preprocessing_assumed,
        classes=list(model.classes) if model.classes else None,
        detector=None if model.detector is None else model.detector.to_dict(),
    )


def _preprocessing_assumed(source: GraphFacts | _CheckpointFacts) -> bool:
    """Whether the source is a checkpoint whose preprocessing was assumed."""
    return isinstance(source, _CheckpointFacts) and source.preprocessing_assumed


def _check_precision(facts: GraphFacts | None, settings: BuildSettings, graph: Path) -> None:
    carried = facts.precision if facts else "fp32"
    if carried != settings.precision:
        raise UsageError(
            f"{graph.name} is an {carried.upper()} graph, not {settings.precision.upper()}",
            hint=f"first run resnet-opt quantize {graph.name} --precision {settings.precision}",
        )


def _recorded(settings: BuildSettings) -> dict[str, Any]:
    recorded = asdict(settings)
    recorded["timing_cache"] = None  # it changes only how long the build takes
    recorded["options"] = dict(settings.options)
    return recorded


def copy_graph_beside(graph: Path, output: Path) -> None:
    """Copy the graph beside the engine, as one file, with its manifest if it has one."""
    graph_copy = output.with_name(output.name + GRAPH_SUFFIX)
    if graph.resolve() == graph_copy.resolve():
        return
    if (
        graph_copy.is_file()
        and manifest_path(graph_copy).is_file()
        and digest(graph_copy) == digest(graph)
    ):
        return
    sidecar = find_manifest(graph)
    plan = Plan(kind="graph", inputs=[Input.of("source", graph)])

    def write(path: Path) -> dict[str, Any]:
        copy_as_one_file(graph, path)
        return {}

    if sidecar is None or digest(graph) != read_manifest(graph).sha256:
        produce(plan, graph_copy, write, cache=DisabledCache())
        return
    with write_pair_atomically(graph_copy, manifest_path(graph_copy)) as (temporary, beside):
        copy_as_one_file(graph, temporary)
        manifest = read_manifest(graph).model_copy(
            update={"file": graph_copy.name, "sha256": digest(temporary)}
        )
        beside.write_text(manifest.as_text(), encoding="utf-8")
