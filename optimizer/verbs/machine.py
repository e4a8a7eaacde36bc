"""The verbs about this machine: ``doctor`` and ``clean``; and ``load``, which opens an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache

if TYPE_CHECKING:
    from optimizer.engines import Session
    from optimizer.environment import Environment

__all__ = ["Cleaned", "clean", "doctor", "load"]


def doctor() -> Environment:
    """Find out what this machine can build and run, and what would enable the rest."""
    from optimizer.environment import describe

    return describe()


@dataclass(frozen=True)
class Cleaned:
    """What was removed from a cache.

    Attributes:
        root: The cache's folder.
        count: Artifacts removed.
        freed_bytes: Their size.
    """

    root: Path
    count: int
    freed_bytes: int


def clean(cache: Cache | None = None) -> Cleaned:
    """Remove the cache of artifacts; files named as outputs stay.

    Args:
        cache: Which cache; ``None`` for the user's own.
    """
    cache = cache or Cache.default()
    count = len(cache.entries())
    return Cleaned(cache.root, count, cache.clear())


def load(engine: Path | str, *, threads: int | None = None, device: str | None = None) -> Session:
    """Open an engine or a checkpoint, to compute batches with it.

    Args:
        engine: An engine or a checkpoint.
        threads: Threads to compute with; ``None`` for all physical cores.
        device: The GPU, ``cuda:1``, of an engine that runs on one; ``None`` for the first.

    Raises:
        ArtifactError: A file that is no engine, or does not fit this machine.
        MissingLibrary, MissingDevice: It cannot run here.
    """
    from optimizer.engines import open_engine

    return open_engine(Path(engine), threads=threads, device=device)
