"""Digests of image files, remembered between runs, so that ImageNet is not read again each time.

A digest is remembered with the file's size, inode and times of its last modification and last status
change, as reported when it was read. A file is read again if any of these differs. What this can
miss: a file system that does not update these times (some network mounts), or a change within the
clock's resolution; therefore a digest is not remembered if the file changed within the last two
seconds. Sets of fewer than a thousand files are not remembered, since reading them takes no time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path

from optimizer.artifacts import Cache, write_text_atomically
from optimizer.errors import ArtifactError

__all__ = ["FileDigests"]

_log = logging.getLogger(__name__)
_FEW_FILES = 1000
_SETTLED_NS = 2_000_000_000
_Identity = tuple[int, int, int, int]
"""Size, inode, modification and status-change time in nanoseconds."""


class FileDigests:
    """SHA-256 digests of the files of one folder."""

    def __init__(self, root: Path, count: int) -> None:
        """Nothing is read yet.

        Args:
            root: The folder; names are relative to it.
            count: Number of files in the dataset.
        """
        self._root = str(root)
        self._store = _store_of(root) if count >= _FEW_FILES else None
        self._known: dict[str, tuple[_Identity, str]] | None = None
        self._new = 0
        self._changed: list[str] = []

    def of(self, name: str) -> bytes:
        """The digest of a file; an unreadable file gets a digest of its error.

        Decoding reports unreadable files, or leaves them out.
        """
        known = self._load()
        path = os.path.join(self._root, name)  # noqa: PTH118 - a Path costs more than the rest, for each of 50,000 files
        try:
            identity = _identity(path)
            if name in known and known[name][0] == identity:
                return bytes.fromhex(known[name][1])
            found = hashlib.sha256(_contents(path))
            settled = time.time_ns() - max(identity[2:]) > _SETTLED_NS
            unchanged = _identity(path) == identity
        except OSError as error:
            return hashlib.sha256(f"unreadable: {error.errno}".encode()).digest()
        if name in known and known[name][1] != found.hexdigest():
            self._changed.append(name)
        if settled and unchanged:
            known[name] = identity, found.hexdigest()
            self._new += 1
        return found.digest()

    def remember(self) -> None:
        """Store new digests, and warn of changes; without a writable cache nothing is stored."""
        if self._changed:
            _log.warning(
                "%d images of %s changed since they were read last; the first is %s",
                len(self._changed), self._root, self._changed[0],
            )  # fmt: skip
            self._changed = []
        if self._store is None or self._new == 0 or self._known is None:
            return
        text = json.dumps({name: [*i, digest] for name, (i, digest) in self._known.items()})
        with contextlib.suppress(OSError, ArtifactError):
            write_text_atomically(self._store, text)
            self._new = 0

    def _load(self) -> dict[str, tuple[_Identity, str]]:
        if self._known is None:
            self._known = {}
            if self._store is not None:
                with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                    stored = json.loads(self._store.read_text(encoding="utf-8"))
                    self._known = {
                        name: ((size, inode, modified, changed), _checked(digest))
                        for name, (size, inode, modified, changed, digest) in stored.items()
                    }
        return self._known


def _store_of(root: Path) -> Path | None:
    """The file with the digests of a folder; ``None`` without a cache that can be written."""
    cache = Cache.default()
    if not cache.keeps:
        return None
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    try:
        return cache.folder("digests") / f"{name}.json"
    except OSError:
        return None


def _contents(path: str) -> bytes:
    with open(path, "rb") as stream:  # noqa: PTH123 - see above
        return stream.read()


def _identity(path: str) -> _Identity:
    status = os.stat(path)  # noqa: PTH116 - see above
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _checked(digest: str) -> str:
    if len(bytes.fromhex(digest)) != hashlib.sha256().digest_size:
        raise ValueError(digest)
    return digest
