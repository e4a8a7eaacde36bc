"""Finds the external data files of an ONNX model.

Tensors with external data occur in initializers, attributes (Constant nodes), subgraphs and
functions. Since this runs for every file that is hashed, under any file name, it scans the protobuf
encoding directly: without a library, without reading the weights, and it gives up on other file
types after a few bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from optimizer.errors import ArtifactError

__all__ = ["external_data_files"]

_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}  # fmt: skip
"""Field numbers, per message of onnx.proto, that may contain tensors."""
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


def external_data_files(path: Path) -> list[Path]:
    """The external data files of an ONNX model.

    Args:
        path: Any file; the list is empty if it is not an ONNX model.

    Raises:
        ArtifactError: A data file is missing, has no name, or is outside the model's folder.
    """
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            names = _locations(data)
        except _NotProtobufError:
            return []  # not an ONNX file; the code that loads it reports that
    folder = path.parent.resolve()
    files = []
    for name in sorted(names):
        if not name:
            raise ArtifactError(
                f"{path.name} says that weights are in another file but not in which",
                hint="save the model again, as one file",
            )
        data_file = (folder / name.replace("\0", "/")).resolve()  # NUL would raise ValueError
        if not data_file.is_relative_to(folder):
            raise ArtifactError(
                f"{path.name} refers to weights outside its own folder: {name}",
                hint="save the model as one file, or put the data file beside it",
            )
        if not data_file.is_file():
            raise ArtifactError(
                f"{path.name} needs the weights file {name}, which is not beside it",
                hint="copy the data file into the same folder",
            )
        files.append(data_file)
    return files


class _NotProtobufError(ValueError):
    """The bytes are not a protobuf message."""


def _locations(data: mmap.mmap) -> set[str]:
    """Names of the files that a model's tensors refer to."""
    names: set[str] = set()
    messages = [("model", 0, len(data))]
    while messages:
        kind, start, stop = messages.pop()
        if kind == "tensor":
            names |= _locations_of_tensor(data, start, stop)
            continue
        for number, _, begin, end in _fields(data, start, stop):
            if number in _PARTS[kind]:
                messages.append((_PARTS[kind][number], begin, end))
    return names


def _locations_of_tensor(data: mmap.mmap, start: int, stop: int) -> set[str]:
    name, location = "", 0
    for number, value, begin, end in _fields(data, start, stop):
        if number == _DATA_LOCATION and value is not None:
            location = value
        elif number == _EXTERNAL_DATA:
            entry = {field: data[a:b] for field, _, a, b in _fields(data, begin, end)}
            if entry.get(1) == b"location":
                name = entry.get(2, b"").decode("utf-8", "surrogateescape")
    return {name} if location == _EXTERNAL else set()


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int | None, int, int]]:
    """Each field of a message: its number, value (varints only), start and end (bytes only)."""
    at, groups = start, 0
    while at < stop:
        tag, at = _varint(data, at, stop)
        number, wire = tag >> 3, tag & 7
        value: int | None = None
        begin = end = at
        if wire == _VARINT:
            value, at = _varint(data, at, stop)
        elif wire == _BYTES:
            length, begin = _varint(data, at, stop)
            at = end = begin + length
        elif wire in {_FIXED64, _FIXED32}:
            at += 8 if wire == _FIXED64 else 4
        elif wire in {_GROUP, _END_GROUP}:
            groups += 1 if wire == _GROUP else -1
        else:
            raise _NotProtobufError
        if number == 0 or at > stop or groups < 0:
            raise _NotProtobufError
        if groups == 0:
            yield number, value, begin, end
    if groups:
        raise _NotProtobufError


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _NotProtobufError
