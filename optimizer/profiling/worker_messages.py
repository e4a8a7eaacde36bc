"""Messages between the harness and its workers: one JSON line, then the raw bytes of its arrays.

Not pickle: a worker runs third-party native code, and its output must be treated as plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Message", "Reader", "Writer", "read_message", "write_message"]

Message = tuple[dict[str, Any], dict[str, NDArray[Any]]]
_MAX_HEADER = 1 << 20
_MAX_ARRAY = 1 << 31


class Reader(Protocol):
    """A stream that `read_message` reads from."""

    def readline(self, limit: int = -1, /) -> bytes:
        """A line including its newline; less at the end of the stream."""

    def read(self, size: int = -1, /) -> bytes:
        """``size`` bytes; less at the end of the stream."""


class Writer(Protocol):
    """A stream that `write_message` writes to."""

    def write(self, data: bytes, /) -> Any:
        """Write all of ``data``."""

    def flush(self) -> None:
        """Flush buffers."""


def write_message(
    stream: Writer, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
) -> None:
    """Write a header and its arrays.

    Args:
        stream: A binary stream.
        header: JSON-serializable values.
        arrays: Numeric arrays of any shape.
    """
    arrays = {name: np.ascontiguousarray(a) for name, a in (arrays or {}).items()}
    specs = {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()}
    stream.write(json.dumps({**header, "arrays": specs}).encode() + b"\n")
    for array in arrays.values():
        stream.write(array.tobytes())
    stream.flush()


def read_message(stream: Reader) -> Message | None:
    """Read the next message; ``None`` at the end of the stream.

    Raises:
        ValueError: The data is not a message, or the stream ended within one.
    """
    line = stream.readline(_MAX_HEADER)
    if not line:
        return None
    header = json.loads(line)
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), dict):
        raise ValueError(f"not a message: {line[:80]!r}")  # noqa: TRY004 - the data is invalid
    arrays = {}
    for name, (kind, shape) in header.pop("arrays").items():
        dtype = np.dtype(kind)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if dtype.hasobject or not 0 <= size <= _MAX_ARRAY:
            raise ValueError(f"unsupported array: {size} bytes of {kind}")
        data = stream.read(size)
        if len(data) != size:
            raise ValueError(f"the stream ended within {name}")
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return header, arrays
