"""Messages between a process and its child: the length of a pickle, then the pickle.

Both ends belong to this package.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Protocol

__all__ = ["receive", "send"]

_LENGTH = struct.Struct(">Q")
_MAX_LENGTH = 1 << 36


class _Writer(Protocol):
    def write(self, data: bytes, /) -> Any: ...

    def flush(self) -> None: ...


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def send(stream: _Writer, frame: bytes) -> None:
    """Write a pickle as one message."""
    stream.write(_LENGTH.pack(len(frame)) + frame)
    stream.flush()


def receive(stream: _Reader) -> Any:
    """The next message; ``None`` at the end of the stream.

    Raises:
        ValueError: The length is not plausible.
        Exception: Whatever `pickle` raises for what is not a pickle.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > _MAX_LENGTH:
        raise ValueError(f"a message of {length} bytes")
    frame = stream.read(length)
    if len(frame) < length:
        return None
    return pickle.loads(frame)  # noqa: S301 - both ends are ours
