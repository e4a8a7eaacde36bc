"""The verbs about this machine: ``doctor`` and ``clean``; and ``load``, which opens an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache, clean_up_after_crashes

if TYPE_CHECKING:
    from optimizer.engines import Session
    from optimizer.environment import Environment

__all__ = ["Cleaned", "clean", "doctor", "load"]


def doctor() -> Environment:
    """Describe what this machine can build and run, and how to enable the rest."""
    from optimizer.environment import describe

    return describe()


@dataclass(frozen=True)
class Cleaned:
    """Result of `clean`.

    Attributes:
        root: The cache's folder.
        artifacts: Name, kind and size in bytes of each artifact.
        freed_bytes: Size of the removed files.
        foreign: What is in the folder and was not made by this package; it is kept.
    """

    root: Path
    artifacts: tuple[tuple[str, str, int], ...]
    freed_bytes: int
    foreign: tuple[Path, ...] = ()

    @property
    def count(self) -> int:
        """Number of artifacts."""
        return len(self.artifacts)


def clean(
    cache: Cache | None = None,
    *,
    dry_run: bool = False,
    before: Callable[[Cleaned], None] | None = None,
) -> Cleaned:
    """Delete the artifact cache, and what killed runs left behind; output files are kept.

    Leftovers are removed from the cache, the current folder and the folder for temporary files.

    Args:
        cache: The cache; ``None`` for the user's default cache.
        dry_run: Only list what would be deleted.
        before: Called with what will be deleted, before anything is.

    Raises:
        UsageError: The folder is not a cache of this package.
    """
    cache = cache or Cache.default()
    cache.check_marked()
    contents = cache.contents()
    planned = Cleaned(
        root=cache.root,
        artifacts=tuple((m.file, m.kind, size) for m, size in contents.artifacts),
        freed_bytes=sum(size for _, size in contents.artifacts),
        foreign=tuple(contents.foreign),
    )
    if before is not None:
        before(planned)
    if dry_run:
        return planned
    clean_up_after_crashes([Path.cwd()])
    return replace(planned, freed_bytes=cache.clear())


def load(engine: Path | str, *, threads: int | None = None, device: str | None = None) -> Session:
    """Open an engine or a checkpoint for inference.

    Args:
        engine: An engine or a checkpoint.
        threads: Number of threads; ``None`` for all physical cores.
        device: GPU (``cuda:1``) for an engine that runs on one; ``None`` for the first.

    Raises:
        ArtifactError: The file is not an engine, or does not fit this machine.
        MissingLibrary, MissingDevice: It cannot run here.
    """
    from optimizer.engines import open_engine

    return open_engine(Path(engine), threads=threads, device=device)
