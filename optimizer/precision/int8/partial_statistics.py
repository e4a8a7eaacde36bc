"""Statistics of a part of the calibration images, kept in the cache until the calibration is done.

Statistics of disjoint images merge exactly, in any order. So after each shard of images a calibration
writes what it has collected so far to one file, which replaces the one before, and the next run
starts from there: with any number of processes, and with the same result as an uninterrupted one. A
file is named after the network and the shards that it covers, each by the contents of its images.

Not handled: an image that changed is in sums that cannot be taken apart, so a file that covers its
shard is of no use any more.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from optimizer.artifacts import Cache, content_key, forget_abandoned, read_tensors, write_tensors
from optimizer.errors import ArtifactError
from optimizer.precision.int8.statistics import Statistics

__all__ = ["Part", "PartialStatistics", "partial_folder", "shard_ids"]

_REVISION = 1
"""Raised when the same images would give other statistics."""
_SAMPLE = "sample"


@dataclass
class Part:
    """Statistics of some shards.

    Attributes:
        unreadable: By the shard's id, the positions within the shard of the images that cannot be
            read.
        statistics: From `Collector.collected`.
    """

    unreadable: dict[str, list[int]] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)


def partial_folder(cache: Cache | None) -> Path | None:
    """The folder of all such files in a cache; ``None`` if it cannot be written."""
    return None if cache is None else cache.lasting_folder("calibrations")


def shard_ids(digests: Sequence[str]) -> list[str]:
    """Ids of shards from the digests of their images, different also where those are equal."""
    seen: Counter[str] = Counter()
    ids = []
    for digest in digests:
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else content_key([digest, seen[digest]]))
    return ids


class PartialStatistics:
    """The files of one network; never an error: what cannot be stored is computed again."""

    def __init__(self, root: Path, network: Mapping[str, Any]) -> None:
        """Nothing is written yet; files that nobody came back for are removed.

        Args:
            root: The folder of all files.
            network: What the statistics depend on, apart from the images.
        """
        self._root = root
        self._key = content_key({**network, "revision": _REVISION})
        self._replaced: list[Path] = []
        self.error: str | None = None
        """Why nothing more is stored, e.g. a full disk."""
        forget_abandoned(root)

    def load(self, wanted: Sequence[str], *, skip_bad_images: bool) -> Iterator[Part]:
        """Parts that cover different ones of the wanted shards and no others, the largest first.

        Args:
            wanted: Ids of the shards.
            skip_bad_images: Whether parts count in which images could not be read; otherwise they are
                read again, which reports them.
        """
        missing = set(wanted)
        for path in sorted(self._files(), key=_size, reverse=True):
            part = _read(path)
            if part is None or not part.unreadable.keys() <= missing:
                continue
            if skip_bad_images or not any(part.unreadable.values()):
                missing -= part.unreadable.keys()
                self._replaced.append(path)
                yield part

    def save(self, part: Part) -> None:
        """Store a part that contains all that this object loaded or saved before."""
        if self.error is not None:
            return
        path = self._root / f"{self._key}.{content_key(sorted(part.unreadable))}.safetensors"
        try:
            write_tensors(path, *_packed(part))
        except (OSError, ArtifactError) as error:
            self.error = getattr(error, "strerror", None) or str(error)
            return
        self._remove([old for old in self._replaced if old != path])
        self._replaced = [path]

    def clear(self) -> None:
        """Remove all files of this network; its calibration is done."""
        self._remove(self._files())

    def _files(self) -> list[Path]:
        try:
            return list(self._root.glob(f"{self._key}.*.safetensors"))
        except OSError:
            return []

    @staticmethod
    def _remove(paths: Sequence[Path]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _packed(part: Part) -> tuple[dict[str, NDArray[Any]], str]:
    arrays, header = part.statistics.as_arrays()
    return {**arrays, _SAMPLE: part.statistics.sample}, json.dumps([header, part.unreadable])


def _read(path: Path) -> Part | None:
    found = read_tensors(path)
    if found is None:
        return None
    arrays, note = found
    try:
        header, unreadable = json.loads(note)
        statistics = Statistics.from_arrays(header, arrays, arrays[_SAMPLE])
        return Part(
            {str(shard): list(map(int, bad)) for shard, bad in unreadable.items()}, statistics
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
