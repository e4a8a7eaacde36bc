"""`produce`: build an artifact unless it exists already."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer._version import __version__
from optimizer.artifacts.atomic_files import ChangedMeanwhile, write_pair_atomically
from optimizer.artifacts.cache import Cache
from optimizer.artifacts.keys import canonical, digest
from optimizer.artifacts.manifest import Artifact, Manifest, Plan, load_artifact, manifest_path
from optimizer.errors import ArtifactError

__all__ = ["produce"]

_log = logging.getLogger(__name__)


def _manifest_of(plan: Plan, path: Path, sha256: str, details: Mapping[str, Any]) -> Manifest:
    return Manifest(
        kind=plan.kind,
        file=path.name,
        sha256=sha256,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool={"name": "resnet-opt", "version": __version__},
        inputs=list(plan.inputs),
        settings=canonical(plan.settings),
        preprocessing=None if plan.preprocessing is None else canonical(plan.preprocessing),
        classes=None if plan.classes is None else list(plan.classes),
        libraries=dict(plan.libraries),
        device=None if plan.device is None else canonical(plan.device),
        key=plan.key,
        details=canonical(details),
    )


def produce(
    plan: Plan,
    destination: Path,
    write: Callable[[Path], Mapping[str, Any]],
    *,
    cache: Cache | None = None,
) -> Artifact:
    """Build the artifact ``plan`` at ``destination``, unless it is there or in the cache.

    Args:
        plan: Everything that determines the artifact.
        destination: The file to write; the manifest is written beside it.
        write: Writes the file at the given path and returns ``details`` for the manifest. Not
            called if the artifact is at ``destination`` or in ``cache``.
        cache: Artifact cache; ``None`` for no cache, `DisabledCache` to rebuild the artifact always.

    Raises:
        ArtifactError: ``write`` wrote nothing, or another process wrote ``destination`` in the
            meantime.
    """
    existing = None if cache is not None and cache.rebuild_all else _existing(plan, destination)
    if existing is not None:
        _log.debug("%s %s is up to date (key %.12s)", plan.kind, destination, plan.key)
        return existing
    with cache.lock(plan.key) if cache is not None else contextlib.nullcontext():
        if cache is not None and (manifest := cache.fetch(plan.key, destination)):
            _log.debug("%s %s taken from the cache (key %.12s)", plan.kind, destination, plan.key)
            return Artifact(destination, manifest, cached=True)
        _log.debug("build %s %s (key %.12s)", plan.kind, destination, plan.key)
        try:
            manifest = _build(plan, destination, write)
        except ChangedMeanwhile:
            # Two runs of the same command are no conflict: either result serves both.
            existing = _existing(plan, destination)
            if existing is None:
                raise
            return existing
        if cache is not None:
            cache.store(destination, manifest)
    _log.debug("wrote %s, %d bytes", destination, destination.stat().st_size)
    return Artifact(destination, manifest)


def _build(plan: Plan, destination: Path, write: Callable[[Path], Mapping[str, Any]]) -> Manifest:
    with write_pair_atomically(destination, manifest_path(destination)) as (temporary, sidecar):
        details = write(temporary)
        if not temporary.is_file() or temporary.stat().st_size == 0:
            raise ArtifactError(f"nothing was written for {destination}")
        manifest = _manifest_of(plan, destination, digest(temporary), details)
        sidecar.write_text(manifest.as_text(), encoding="utf-8")
    return manifest


def _existing(plan: Plan, destination: Path) -> Artifact | None:
    if not (destination.is_file() and manifest_path(destination).is_file()):
        return None
    try:
        artifact = load_artifact(destination)
    except ArtifactError:
        return None  # changed or damaged; will be rebuilt
    if artifact.manifest.key != plan.key:
        return None
    return Artifact(destination, artifact.manifest, cached=True)
