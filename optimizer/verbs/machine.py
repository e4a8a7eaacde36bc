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
    """Describe what this machine can build and run, and how to enable the rest."""
    from optimizer.environment import describe

    return describe()


@dataclass(frozen=True)
class Cleaned:
    """Result of `clean`.

    Attributes:
        root: The cache's folder.
        count: Number of artifacts removed.
        freed_bytes: Size of the removed files.
    """

    root: Path
    count: int
    freed_bytes: int


def clean(cache: Cache | None = None) -> Cleaned:
    """Delete the artifact cache; output files are kept.

    Args:
        cache: The cache; ``None`` for the user's default cache.
    """
    cache = cache or Cache.default()
    count = len(cache.entries())
    return Cleaned(cache.root, count, cache.clear())


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
