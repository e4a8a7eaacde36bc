"""Opens engines after checking their manifests; unsuitable engines never reach their library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from optimizer.artifacts import (
    Manifest,
    find_manifest,
    library_versions,
    load_artifact,
    read_manifest,
)
from optimizer.engines.protocol import (
    Backend,
    ChecksMachine,
    ChoosesOpening,
    ConcurrentBackend,
    Opening,
    Session,
)
from optimizer.engines.registry import get_backend
from optimizer.errors import ArtifactError, MissingDevice, MissingLibrary, UsageError

__all__ = [
    "check_opens",
    "check_same_device",
    "check_versions",
    "closing",
    "gives_probabilities",
    "graph_of",
    "how_to_build",
    "is_foreign_graph",
    "open_engine",
    "open_streams",
    "rebuild_command",
]

GRAPH_SUFFIX = ".graph.onnx"


def gives_probabilities(engine: Path) -> bool:
    """Whether the graph that an engine was built from ends in Softmax or Sigmoid."""
    from optimizer.graphs.onnx_files import open_onnx
    from optimizer.graphs.source_ends import ends_in_probabilities

    graph = graph_of(engine) or (engine if engine.suffix == ".onnx" else None)
    return graph is not None and ends_in_probabilities(open_onnx(graph, weights=False).proto)


def graph_of(engine: Path) -> Path | None:
    """The graph an engine was built from, if it is still beside the engine."""
    graph = engine.with_name(engine.name + GRAPH_SUFFIX)
    return graph if graph.is_file() else None


def open_engine(path: Path, *, threads: int | None = None, device: str | None = None) -> Session:
    """Load an engine, or a checkpoint as PyTorch eager.

    Args:
        path: An engine built by ``resnet-opt build``, or a checkpoint.
        threads: Compute threads; ``None`` for all physical cores.
        device: Device such as ``cuda:1``; ``None`` for the backend's first.

    Raises:
        ArtifactError: The manifest is missing, the file was changed, it is another kind of
            artifact, or it was built for another library version or device.
        EnvironmentFault: This machine cannot run this kind of engine.
    """
    return _checked_backend(path, device).load(path, threads=threads, device=device)


def open_streams(
    path: Path,
    streams: int,
    *,
    threads: int | None = None,
    device: str | None = None,
    opening: Opening | None = None,
) -> Sequence[Session]:
    """Load an engine once, as sessions that compute at the same time, each in its own thread.

    Args:
        path: As for `open_engine`.
        streams: Number of sessions.
        threads: Compute threads of all sessions together.
        device: Device such as ``cuda:1``.
        opening: How to open the engine, if its backend offers a choice.

    Raises:
        ArtifactError, EnvironmentFault: As `open_engine`.
        UsageError: The backend computes only one batch at a time, or lacks the variant.
    """
    backend = _checked_backend(path, device)
    if opening is not None and isinstance(backend, ChoosesOpening):
        return backend.load_with(path, opening, streams=streams, threads=threads, device=device)
    if opening is not None and opening.variant is not None:
        raise UsageError(
            f"{path.name} cannot be run as {opening.variant}: only checkpoints can",
            hint="add the checkpoint to the command",
        )
    if streams == 1:
        return [backend.load(path, threads=threads, device=device)]
    if not isinstance(backend, ConcurrentBackend):
        raise UsageError(
            f"{backend.name} computes one batch at a time, not {streams}", hint="--streams 1"
        )
    return backend.load_streams(path, streams=streams, threads=threads, device=device)


def _checked_backend(path: Path, device: str | None) -> Backend:
    """The backend of a file, after checking that the file can be opened here."""
    if _is_checkpoint(path):
        return get_backend("torch")
    if is_foreign_graph(path):
        raise ArtifactError(f"{path.name} is a graph, not an engine", hint=how_to_build(path))
    artifact = load_artifact(path)
    if artifact.manifest.kind != "engine":
        raise ArtifactError(
            f"{path.name} is a {artifact.manifest.kind}, not an engine",
            hint=how_to_build(path),
        )
    backend = get_backend(str(artifact.manifest.settings.get("backend")))
    check_opens(backend, path, artifact.manifest, device=device)
    return backend


def is_foreign_graph(path: Path) -> bool:
    """Whether a path is an ONNX file without a manifest, and by its name not an engine that lost it."""
    is_onnx = path.suffix == ".onnx" and not path.name.endswith(".ort.onnx")
    return is_onnx and path.is_file() and find_manifest(path) is None


def how_to_build(graph: Path) -> str:
    """The command that makes an engine of a graph."""
    return f"resnet-opt build {graph} --engine auto -o {graph.stem}.engine"


def _is_checkpoint(path: Path) -> bool:
    """Whether PyTorch runs the file, although it is no engine."""
    with contextlib.suppress(ArtifactError):
        if read_manifest(path).kind == "engine":
            return False
    # Not for engines: a worker of a benchmark need not import all sources of models.
    from optimizer.models.model_sources import is_checkpoint

    return is_checkpoint(path)


def check_opens(
    backend: Backend, path: Path, manifest: Manifest, *, device: str | None = None
) -> None:
    """Compare what the engine was built for with this machine.

    Backends that implement `ChecksMachine` decide for themselves. For others, library versions and
    device must be equal.

    Raises:
        MissingLibrary, MissingDevice: This machine cannot run the engine.
        ArtifactError: The library version or device differs; the error names the difference and
            the rebuild command.
    """
    status = backend.availability()
    if not status.can_run:
        kind = MissingDevice if status.can_build else MissingLibrary
        raise kind(f"{path.name} cannot run here: {status.reason}", hint=status.hint)
    if isinstance(backend, ChecksMachine):
        backend.check_machine(path, manifest, device)
        return
    check_versions(backend, path, manifest)
    check_same_device(backend, path, manifest)


def check_versions(backend: Backend, path: Path, manifest: Manifest) -> None:
    """Refuse an engine that was built by other versions of the backend's libraries.

    Raises:
        ArtifactError: They differ; the error names the difference and the rebuild command.
    """
    installed = library_versions(*backend.libraries)
    for name in backend.libraries:
        built, now = manifest.libraries.get(name), installed.get(name)
        if built is not None and now is not None and built != now:
            raise ArtifactError(
                f"{path.name} was built with {name} {built}, but {now} is installed",
                hint=rebuild_command(path, manifest),
            )


def check_same_device(backend: Backend, path: Path, manifest: Manifest) -> None:
    """Refuse an engine that was built for another device.

    Raises:
        ArtifactError: They differ; the error names the difference and the rebuild command.
    """
    present = backend.device()
    for field, built in (manifest.device or {}).items():
        now = present.get(field)
        if now is not None and now != built:
            raise ArtifactError(
                f"{path.name} was built for {field} {_format_value(built)}, "
                f"but this machine has {_format_value(now)}",
                hint=rebuild_command(path, manifest),
            )


def rebuild_command(path: Path, manifest: Manifest, *, target: str | None = None) -> str:
    """The command that rebuilds this engine, from the graph beside it if there is one.

    Args:
        path: The engine.
        manifest: Its manifest, with the settings of the build.
        target: Compute capability to build for instead of the original ones.
    """
    from optimizer.engines.build_settings import flags_of

    graph = graph_of(path)
    source = graph.name if graph else next((i.file for i in manifest.inputs), "model.onnx")
    settings = {**manifest.settings, **({"targets": [target]} if target else {})}
    return f"resnet-opt build {source} {flags_of(settings)} -o {path.name}"


def _format_value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@contextlib.contextmanager
def closing(session: Session) -> Iterator[Session]:
    """Close a session when the ``with`` block ends."""
    try:
        yield session
    finally:
        session.close()
