"""Finds the external data files of an ONNX model.

Tensors with external data occur in initializers, attributes (Constant nodes), subgraphs and
functions. Since this runs for every file that is hashed, under any file name, it scans the protobuf
encoding directly: without a library, without reading the weights, and it gives up on other file
types after a few bytes.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from optimizer.artifacts.protobuf_fields import ONNX_PARTS, NotProtobufError, fields
from optimizer.errors import ArtifactError

__all__ = ["external_data_files"]

_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_MOST_FIELDS = 20_000_000
"""Fields that are read at most; a file of nothing but tiny fields would take hours."""


def external_data_files(path: Path) -> list[Path]:
    """The external data files of an ONNX model.

    Args:
        path: Any file; the list is empty if it is not an ONNX model.

    Raises:
        ArtifactError: A data file is missing, has no name, or is outside the model's folder; or the
            file has too many parts to be a graph.
    """
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            names = _locations(data)
        except NotProtobufError:
            return []  # not an ONNX file; the code that loads it reports that
        except _TooManyFieldsError:
            raise ArtifactError(
                f"{path.name} has more than {_MOST_FIELDS:,} parts, which no graph of a network has",
                hint="check where the file comes from",
            ) from None
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


class _TooManyFieldsError(Exception):
    """The message has more fields than are read."""


def _locations(data: mmap.mmap) -> set[str]:
    """Names of the files that a model's tensors refer to."""
    names: set[str] = set()
    messages = [("model", 0, len(data))]
    count = 0
    while messages:
        kind, start, stop = messages.pop()
        if kind == "tensor":
            names |= _locations_of_tensor(data, start, stop)
            continue
        for number, _, begin, end in fields(data, start, stop):
            count += 1
            if count > _MOST_FIELDS:
                raise _TooManyFieldsError
            if number in ONNX_PARTS[kind]:
                messages.append((ONNX_PARTS[kind][number], begin, end))
    return names


def _locations_of_tensor(data: mmap.mmap, start: int, stop: int) -> set[str]:
    name, location = "", 0
    for number, value, begin, end in fields(data, start, stop):
        if number == _DATA_LOCATION and value is not None:
            location = value
        elif number == _EXTERNAL_DATA:
            entry = {field: data[a:b] for field, _, a, b in fields(data, begin, end)}
            if entry.get(1) == b"location":
                name = entry.get(2, b"").decode("utf-8", "surrogateescape")
    return {name} if location == _EXTERNAL else set()
