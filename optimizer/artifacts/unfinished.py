"""Parts of a long job that are complete, kept in the cache until the job is done.

A part is computed once: `UnfinishedWork.part` finds what an earlier run that was killed has stored. Files
are those of `optimizer.artifacts.tensor_files`; a damaged one is computed again.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts.keys import content_key
from optimizer.artifacts.tensor_files import read_tensors, write_tensors
from optimizer.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UnfinishedWork", "forget_abandoned"]

_KEPT_S = 30 * 24 * 3600.0
Part = tuple[Mapping[str, "NDArray[Any]"], str]
"""Arrays by name, and a text."""


class UnfinishedWork:
    """The parts of one job; never an error: what cannot be stored is computed again."""

    def __init__(self, root: Path | None, job: Any) -> None:
        """Nothing is written yet; files that nobody came back for are removed.

        Args:
            root: Folder of such files, of all jobs; ``None`` stores nothing.
            job: What the parts depend on, a JSON-like value.
        """
        self._root, self._key = root, content_key(job)
        self.found: Counter[str] = Counter()
        """By kind of part, the number of items that were stored before."""
        self.error: str | None = None
        """Why nothing more is stored, e.g. a full disk."""
        if root is not None:
            forget_abandoned(root)

    def part(self, kind: str, items: Sequence[Any], compute: Callable[[], Part]) -> Part:
        """A part as an earlier run stored it, or computed now and stored.

        Args:
            kind: What it is.
            items: What it covers, JSON-like values; with ``kind`` they identify it in this job.
            compute: Computes it.
        """
        if self._root is None:
            return compute()
        path = self._root / f"{self._key}.{content_key([kind, list(items)])}.safetensors"
        stored = read_tensors(path)
        if stored is not None:
            self.found[kind] += len(items)
            return stored
        computed = compute()
        if self.error is None:
            try:
                write_tensors(path, *computed)
            except (OSError, ArtifactError) as error:
                self.error = getattr(error, "strerror", None) or str(error)
        return computed

    def clear(self) -> None:
        """Remove all parts; the job is done."""
        with contextlib.suppress(OSError):
            for path in [] if self._root is None else list(self._root.glob(f"{self._key}.*")):
                path.unlink()


def forget_abandoned(root: Path) -> None:
    """Remove what jobs left in a folder that were never finished, after 30 days."""
    with contextlib.suppress(OSError):
        for path in root.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _KEPT_S:
                    path.unlink()
