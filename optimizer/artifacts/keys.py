"""Content keys and digests: what decides an artifact, in 64 hexadecimal digits."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from optimizer.errors import ArtifactError

__all__ = ["canonical", "content_key", "digest", "external_data_files", "library_versions"]

_CHUNK = 1 << 20


def canonical(value: Any) -> Any:
    """JSON-like value with sets sorted and mappings keyed by text; anything else is refused."""
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
    """Sha256 of a JSON-like value, independent of the order of mappings and sets."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_into(hasher: Any, path: Path) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)


def digest(path: Path) -> str:
    """Sha256 of a file's contents; for ONNX, of its external data files too.

    A key that looks at the ``.onnx`` file alone does not see the weights of a model that keeps
    them outside, and hands out the wrong engine.
    """
    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", mend="check the path")
    hasher = hashlib.sha256()
    _sha256_into(hasher, path)
    if path.suffix == ".onnx":
        for data in external_data_files(path):
            hasher.update(data.name.encode())
            _sha256_into(hasher, data)
    return hasher.hexdigest()


def external_data_files(path: Path) -> list[Path]:
    """Files that hold the weights of an ONNX model which keeps them outside.

    Raises:
        ArtifactError: One is missing, or outside the model's own folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError):
        return []  # not an ONNX file: whoever loads it says so better
    names = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    files = []
    for name in sorted(names):
        data = (folder / name).resolve()
        if not data.is_relative_to(folder):
            raise ArtifactError(
                f"{path.name} refers to weights outside its own folder: {name}",
                mend="save the model as one file, or keep its data file beside it",
            )
        if not data.is_file():
            raise ArtifactError(
                f"{path.name} needs the weights file {name}, which is not beside it",
                mend="copy the data file into the same folder",
            )
        files.append(data)
    return files


def library_versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions; one that is missing is left out."""
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
