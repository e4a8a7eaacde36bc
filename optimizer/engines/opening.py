"""Opening an engine: everything that can be refused is refused before its library sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from optimizer.artifacts import Manifest, library_versions, load_artifact, read_manifest
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
from optimizer.models.weights import CHECKPOINTS

__all__ = [
    "check_opens",
    "check_same_device",
    "check_versions",
    "closing",
    "graph_of",
    "open_engine",
    "open_streams",
    "rebuild_command",
]

GRAPH_SUFFIX = ".graph.onnx"


def graph_of(engine: Path) -> Path | None:
    """The graph an engine was built from, if it still lies beside it."""
    graph = engine.with_name(engine.name + GRAPH_SUFFIX)
    return graph if graph.is_file() else None


def open_engine(path: Path, *, threads: int | None = None, device: str | None = None) -> Session:
    """Load an engine, or a checkpoint as PyTorch eager.

    Args:
        path: An engine built by ``resnet-opt build``, or a checkpoint.
        threads: Threads to compute with; ``None`` for all physical cores.
        device: Which device, ``cuda:1``; ``None`` for the backend's first.

    Raises:
        ArtifactError: No manifest, a changed file, another kind of artifact, or an engine of
            another backend version or device.
        EnvironmentFault: The machine cannot run this kind of engine.
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
        streams: How many sessions.
        threads: Threads that all of them compute with together.
        device: Which device.
        opening: How to open it, where its backend leaves a choice.

    Raises:
        ArtifactError, EnvironmentFault: As `open_engine`.
        UsageError: The backend computes one batch at a time only, or not in that way.
    """
    backend = _checked_backend(path, device)
    if opening is not None and isinstance(backend, ChoosesOpening):
        return backend.load_with(path, opening, streams=streams, threads=threads, device=device)
    if opening is not None and opening.variant is not None:
        raise UsageError(
            f"{path.name} cannot be run as {opening.variant}, which is a way to run a checkpoint",
            hint="give the checkpoint too",
        )
    if streams == 1:
        return [backend.load(path, threads=threads, device=device)]
    if not isinstance(backend, ConcurrentBackend):
        raise UsageError(
            f"{backend.name} computes one batch at a time, not {streams}", hint="--streams 1"
        )
    return backend.load_streams(path, streams=streams, threads=threads, device=device)


def _checked_backend(path: Path, device: str | None) -> Backend:
    """The backend of an engine or a checkpoint, which was found fit to be opened here."""
    if path.suffix in CHECKPOINTS and not _is_engine(path):
        return get_backend("torch")
    artifact = load_artifact(path)
    if artifact.manifest.kind != "engine":
        raise ArtifactError(
            f"{path.name} is a {artifact.manifest.kind}, not an engine",
            hint=f"resnet-opt build {path.name} --engine auto",
        )
    backend = get_backend(str(artifact.manifest.settings.get("backend")))
    check_opens(backend, path, artifact.manifest, device=device)
    return backend


def _is_engine(path: Path) -> bool:
    try:
        return read_manifest(path).kind == "engine"
    except ArtifactError:
        return False


def check_opens(
    backend: Backend, path: Path, manifest: Manifest, *, device: str | None = None
) -> None:
    """Compare what the engine was built for with what is here.

    A backend that knows better than by equality what fits what (`ChecksMachine`) is asked.

    Raises:
        MissingLibrary, MissingDevice: Nothing here can run it.
        ArtifactError: Another library version or device; the message names the difference and the
            command that rebuilds.
    """
    found = backend.availability()
    if not found.can_run:
        kind = MissingDevice if found.can_build else MissingLibrary
        raise kind(f"{path.name} cannot run here: {found.reason}", hint=found.hint)
    if isinstance(backend, ChecksMachine):
        backend.check_machine(path, manifest, device)
        return
    check_versions(backend, path, manifest)
    check_same_device(backend, path, manifest)


def check_versions(backend: Backend, path: Path, manifest: Manifest) -> None:
    """Refuse an engine of another version of the backend's libraries.

    Raises:
        ArtifactError: The message names the difference and the command that rebuilds.
    """
    here = library_versions(*backend.libraries)
    for name in backend.libraries:
        built, now = manifest.libraries.get(name), here.get(name)
        if built is not None and now is not None and built != now:
            raise ArtifactError(
                f"{path.name} was built by {name} {built}, here is {now}",
                hint=rebuild_command(path, manifest),
            )


def check_same_device(backend: Backend, path: Path, manifest: Manifest) -> None:
    """Refuse an engine that was built for another device.

    Raises:
        ArtifactError: The message names the difference and the command that rebuilds.
    """
    present = backend.device()
    for field, built in (manifest.device or {}).items():
        now = present.get(field)
        if now is not None and now != built:
            raise ArtifactError(
                f"{path.name} was built for {field} {_words(built)}, here is {_words(now)}",
                hint=rebuild_command(path, manifest),
            )


def rebuild_command(path: Path, manifest: Manifest, *, target: str | None = None) -> str:
    """The command line that makes this engine again, from the graph beside it if it is there.

    Args:
        path: The engine.
        manifest: Its manifest, with all that it was built with.
        target: Another compute capability than it was built for.
    """
    from optimizer.engines.build_settings import flags_of

    graph = graph_of(path)
    source = graph.name if graph else next((i.file for i in manifest.inputs), "model.onnx")
    settings = {**manifest.settings, **({"targets": [target]} if target else {})}
    return f"resnet-opt build {source} {flags_of(settings)} -o {path.name}"


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@contextlib.contextmanager
def closing(session: Session) -> Iterator[Session]:
    """Close a session at the end of a ``with`` block."""
    try:
        yield session
    finally:
        session.close()
