"""Content keys and file digests (sha256)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from optimizer.artifacts.external_data import external_data_files
from optimizer.errors import ArtifactError

__all__ = ["canonical", "content_key", "digest", "library_versions", "remembered_digest"]

_CHUNK = 1 << 20
_SETTLED_NS = 2_000_000_000


def canonical(value: Any) -> Any:
    """A JSON-like value with sets sorted and mapping keys as text.

    Raises:
        TypeError: The value contains something that is not JSON-like, such as a path.
    """
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((canonical(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a content key: {value!r}")


def content_key(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of the order of mappings and sets."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_into(hasher: Any, path: Path) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)


def digest(path: Path) -> str:
    """SHA-256 of a file; for an ONNX model including its external data files.

    Without those, models that differ only in external weights would share a cache key.

    Raises:
        ArtifactError: The file or one of its data files is missing.
    """
    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", hint="check the path")
    hasher = hashlib.sha256()
    _sha256_into(hasher, path)
    for data in external_data_files(path):
        hasher.update(data.name.encode("utf-8", "surrogateescape"))
        _sha256_into(hasher, data)
    return hasher.hexdigest()


def remembered_digest(path: Path) -> str:
    """`digest`, computed once in this process while no file of the artifact changes.

    A verb opens the same graph several times. Files that changed just now are hashed again, because
    a second change within the resolution of the clock could not be seen.
    """
    if not path.is_file():
        return digest(path)
    files = [path, *external_data_files(path)]
    states = [file.stat() for file in files]
    newest = max(state.st_ctime_ns for state in states)
    if abs(time.time_ns() - newest) < _SETTLED_NS:
        return digest(path)
    identity = tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states)
    return _digest_of(path.absolute(), identity)


@functools.lru_cache(maxsize=256)
def _digest_of(path: Path, identity: tuple[tuple[int, ...], ...]) -> str:  # noqa: ARG001 - a key
    return digest(path)


def library_versions(*names: str) -> dict[str, str]:
    """Versions of the given distributions, without those that are not installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
