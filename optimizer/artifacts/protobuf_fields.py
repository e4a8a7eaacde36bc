"""Reads the fields of protobuf messages without a library, and so without the memory of one."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

__all__ = ["ONNX_PARTS", "Field", "NotProtobufError", "fields"]

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)

Field = tuple[int, int | None, int, int]
"""A field's number, its value (varints only), and its start and end (bytes only)."""


ONNX_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}  # fmt: skip
"""Field numbers, per message of onnx.proto, that may contain tensors."""


class NotProtobufError(ValueError):
    """The bytes are not a protobuf message."""


def fields(data: mmap.mmap, start: int, stop: int) -> Iterator[Field]:
    """Each field of a message.

    Raises:
        NotProtobufError: The bytes are not a message, or it is truncated.
    """
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
            raise NotProtobufError
        if number == 0 or at > stop or groups < 0:
            raise NotProtobufError
        if groups == 0:
            yield number, value, begin, end
    if groups:
        raise NotProtobufError


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
    raise NotProtobufError
