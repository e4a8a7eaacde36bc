"""Building an engine: checked first, compiled in a process of its own, written whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    Plan,
    digest,
    find_manifest,
    library_versions,
    manifest_path,
    produce,
    write_atomically,
    write_text_atomically,
)
from optimizer.engines.build_process import build_apart
from optimizer.engines.build_settings import check_taken
from optimizer.engines.opening import GRAPH_SUFFIX
from optimizer.engines.protocol import Backend, BuildSettings
from optimizer.engines.registry import get_backend
from optimizer.errors import MissingLibrary, UsageError
from optimizer.graphs.facts import GraphFacts, graph_facts
from optimizer.graphs.onnx_files import copy_as_one_file
from optimizer.processes import Limits
from optimizer.progress import Progress, Silent

__all__ = ["Limits", "build_engine", "check_buildable", "keep_graph"]


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
    """Compile a graph into an engine with a manifest; the graph is copied beside it.

    Args:
        graph: ONNX file whose precision is explicit (a checkpoint for the ``torch`` engine).
        output: The engine file.
        backend_name: Name of the backend.
        settings: Options of the build; ``precision`` must be what the graph carries.
        cache: Where artifacts are kept by key.
        limits: Of the library's memory and time; they do not decide what an engine is.
        progress: Told of the steps.

    Raises:
        GraphError, UsageError: The graph or an option is wrong.
        EnvironmentFault: The backend cannot build here.
        BuildError: The library failed, crashed, or went beyond a limit.
    """
    backend = get_backend(backend_name)
    own = check_buildable(backend, settings)
    facts = None if graph.suffix == ".safetensors" else graph_facts(graph)
    _check_precision(facts, settings, graph)
    card = facts or _checkpoint_card(graph)

    plan = Plan(
        kind="engine",
        settings={
            "backend": backend_name,
            **_plain(settings),
            **own,
            "arch": card.arch,
            **({"preprocessing_assumed": True} if _assumed(card) else {}),
            **({"keep": facts.keep} if facts is not None and facts.keep else {}),
        },
        inputs=[Input.of("graph" if facts else "checkpoint", graph)],
        libraries=library_versions(*backend.libraries),
        device=backend.device(),
        preprocessing=card.preprocessing,
        classes=card.classes,
    )

    def write(path: Path) -> dict[str, Any]:
        built, peak = build_apart(
            backend, graph, path, settings, limits or Limits(), progress or Silent()
        )
        return {
            "layers": [layer.model_dump(exclude_defaults=True) for layer in built.layers],
            "build_s": built.seconds,
            "build_peak_bytes": peak,
            "notes": [*built.notes, *(facts.notes if facts is not None else ())],
            "image_size": card.image_size,
            **({"built_on": built.machine} if built.machine else {}),
        }

    engine = produce(plan, output, write, cache=cache)
    if facts is not None:
        keep_graph(graph, output)
    return engine


def check_buildable(backend: Backend, settings: BuildSettings) -> dict[str, Any]:
    """Refuse what cannot be built here before anything is computed for it.

    Returns:
        What the backend adds to the manifest's settings.

    Raises:
        MissingLibrary: The backend cannot build here.
        UnsupportedPrecision, UsageError: It does not compute this, or lacks an option.
    """
    check_taken(backend.name, settings)
    found = backend.availability()
    if not found.can_build:
        raise MissingLibrary(f"cannot build for {backend.name}: {found.reason}", hint=found.hint)
    return backend.engine_settings(settings)


@dataclass(frozen=True)
class _Card:
    """What an engine must know of a checkpoint; a graph's facts say the same."""

    arch: str
    image_size: int
    preprocessing: dict[str, Any]
    preprocessing_assumed: bool
    classes: list[str] | None


def _checkpoint_card(path: Path) -> _Card:
    from optimizer.models import load_model

    model = load_model(str(path))
    return _Card(
        arch=model.arch,
        image_size=model.image_size,
        preprocessing=model.preprocessing.to_dict(),
        preprocessing_assumed=model.preprocessing_assumed,
        classes=list(model.classes) if model.classes else None,
    )


def _assumed(card: GraphFacts | _Card) -> bool:
    """Whether an engine that is a checkpoint has preprocessing that nobody told."""
    return isinstance(card, _Card) and card.preprocessing_assumed


def _check_precision(facts: GraphFacts | None, settings: BuildSettings, graph: Path) -> None:
    carried = facts.precision if facts else "fp32"
    if carried != settings.precision:
        raise UsageError(
            f"{graph.name} is an {carried.upper()} graph, not {settings.precision.upper()}",
            hint=f"resnet-opt quantize {graph.name} --precision {settings.precision} first",
        )


def _plain(settings: BuildSettings) -> dict[str, Any]:
    plain = asdict(settings)
    plain["timing_cache"] = None  # it decides how long a build takes, not what it may become
    plain["options"] = dict(settings.options)
    return plain


def keep_graph(graph: Path, output: Path) -> None:
    """Put the graph beside the engine, as one file, with its manifest if it has one."""
    beside = output.with_name(output.name + GRAPH_SUFFIX)
    if graph.resolve() == beside.resolve():
        return
    if beside.is_file() and manifest_path(beside).is_file() and digest(beside) == digest(graph):
        return
    with write_atomically(beside) as temporary:
        copy_as_one_file(graph, temporary)
    sidecar = find_manifest(graph)
    if sidecar is not None and digest(beside) == digest(graph):
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
        write_text_atomically(
            manifest_path(beside), json.dumps({**raw, "file": beside.name}, indent=2) + "\n"
        )
