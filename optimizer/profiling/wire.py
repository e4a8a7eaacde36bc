"""Messages between the harness and its workers: one JSON line, then the arrays it announces.

JSON and raw bytes instead of pickle: a worker runs other people's native code, and what it sends
is data and never instructions.
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
    """What `read_message` reads from."""

    def readline(self, limit: int = -1, /) -> bytes:
        """A line with its end; less at the end of the stream."""

    def read(self, size: int = -1, /) -> bytes:
        """``size`` bytes; less at the end of the stream."""


class Writer(Protocol):
    """What `write_message` writes to."""

    def write(self, data: bytes, /) -> Any:
        """Write all of ``data``."""

    def flush(self) -> None:
        """Hand on what was written."""


def write_message(
    stream: Writer, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
) -> None:
    """Write a header and its arrays.

    Args:
        stream: A binary stream.
        header: JSON-like values.
        arrays: Arrays of numbers, of any shape.
    """
    arrays = {name: np.ascontiguousarray(a) for name, a in (arrays or {}).items()}
    described = {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()}
    stream.write(json.dumps({**header, "arrays": described}).encode() + b"\n")
    for array in arrays.values():
        stream.write(array.tobytes())
    stream.flush()


def read_message(stream: Reader) -> Message | None:
    """Read the next message; ``None`` at the end of the stream.

    Raises:
        ValueError: What came is no message, or the stream ended within one.
    """
    line = stream.readline(_MAX_HEADER)
    if not line:
        return None
    header = json.loads(line)
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), dict):
        raise ValueError(f"not a message: {line[:80]!r}")  # noqa: TRY004 - what came is wrong
    arrays = {}
    for name, (kind, shape) in header.pop("arrays").items():
        dtype = np.dtype(kind)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if dtype.hasobject or not 0 <= size <= _MAX_ARRAY:
            raise ValueError(f"an array of {size} bytes of {kind} is not accepted")
        data = stream.read(size)
        if len(data) != size:
            raise ValueError(f"the stream ended within {name}")
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return header, arrays
