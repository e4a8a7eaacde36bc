"""Limits on graphs from files: how large they may be, and how long one may compute.

They are far above what a ResNet needs and far below what harms a machine. As they protect from files
rather than describe a task, they are environment variables, which child processes inherit:

======================  =======  ======================================================
variable                default  limit
======================  =======  ======================================================
RESNET_OPT_MAX_NODES    50000    nodes of a graph, with those of the functions it calls
RESNET_OPT_MAX_WEIGHTS  16GiB    an ONNX file together with its external data
RESNET_OPT_MAX_TENSOR   1GiB     one tensor that the graph computes, for one image
RESNET_OPT_MAX_SECONDS  10min    computing one batch of a graph as written
======================  =======  ======================================================
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.artifacts.protobuf_fields import ONNX_PARTS, NotProtobufError, fields
from optimizer.errors import GraphError, UsageError
from optimizer.units import format_bytes, parse_bytes, parse_duration

__all__ = ["GraphLimits", "check_size"]

_ENTRIES_A_NODE = 20
"""Fields of nodes, attributes and tensors that are read for each node that is allowed."""
_LARGEST_DESCRIPTION = 32 << 20
"""Bytes of everything but numbers: names, shapes, documentation, metadata. Protobuf libraries need
many times the memory of small fields, so a file of nothing else would take gigabytes."""
_LARGEST_MESSAGE = 1 << 31
"""Protobuf reads no file of 2 GiB."""


@dataclass(frozen=True, kw_only=True)
class GraphLimits:
    """See the module.

    Attributes:
        nodes: Number of nodes.
        weights: Bytes of the file and its external data.
        tensor: Bytes of one computed tensor for one image.
        seconds: Seconds that one batch may take.
    """

    nodes: int = 50_000
    weights: int = 16 << 30
    tensor: int = 1 << 30
    seconds: float = 600.0

    @classmethod
    def of_environment(cls) -> GraphLimits:
        """The limits that the environment sets, and defaults for the others.

        Raises:
            UsageError: A variable has no valid value.
        """
        given: dict[str, Any] = {}
        readers: dict[str, Callable[[str], float]] = {
            "nodes": _whole_number, "weights": parse_bytes, "tensor": parse_bytes,
            "seconds": parse_duration,
        }  # fmt: skip
        for field, read in readers.items():
            variable = f"RESNET_OPT_MAX_{field.upper()}"
            text = os.environ.get(variable)
            if text:
                try:
                    given[field] = read(text)
                except UsageError as error:
                    raise UsageError(f"{variable}: {error.message}", hint=error.hint) from error
        return cls(**given)


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise UsageError(f"{text!r} is not a positive whole number", hint="a number such as 50000")
    return int(text)


def check_size(path: Path, external: int, limits: GraphLimits) -> None:
    """Check how large a graph is without loading it.

    Args:
        path: The ONNX file.
        external: Bytes of its external data.
        limits: The limits.

    Raises:
        GraphError: It is not an ONNX file, or exceeds a limit.
    """
    size = path.stat().st_size
    if size == 0:
        raise GraphError(
            f"{path.name} is an empty file and holds no graph",
            hint="copy it again, or export it again",
        )
    if size >= _LARGEST_MESSAGE:
        raise GraphError(
            f"{path.name} has {format_bytes(size)}; ONNX files end at 2GiB",
            hint="save its weights as external data",
        )
    if size + external > limits.weights:
        raise GraphError(
            f"{path.name} has {(size + external) / 2**30:.1f} GiB with its weights, more than the "
            f"limit of {format_bytes(limits.weights)}",
            hint="if you trust the file, set RESNET_OPT_MAX_WEIGHTS to a larger size",
        )
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            problem = _excess(data, limits.nodes)
        except NotProtobufError:
            raise GraphError(
                f"{path.name} is not an ONNX file or is truncated",
                hint="copy it again, or export it again, for example with resnet-opt export",
            ) from None
    if problem is not None:
        raise GraphError(
            f"{path.name} has {problem}",
            hint="no ResNet needs that; if you trust the file, set RESNET_OPT_MAX_NODES higher",
        )


_NUMBERS = {4, 5, 9, 10}
"""Fields of a tensor whose bytes need about as much memory when they are loaded."""


def _excess(data: mmap.mmap, nodes: int) -> str | None:
    """What of a model exceeds its limits; stops reading as soon as something does."""
    entries = described = found = 0
    messages = [("model", 0, len(data))]
    while messages:
        kind, start, stop = messages.pop()
        parts = ONNX_PARTS[kind]
        for number, _, begin, end in fields(data, start, stop):
            entries += 1
            part = parts.get(number)
            if part is not None:
                messages.append((part, begin, end))
                found += part == "node"
            elif kind != "tensor" or number not in _NUMBERS:
                described += end - begin
            if found > nodes:
                return f"more than {nodes:,} nodes"
            if entries > _ENTRIES_A_NODE * nodes:
                return f"more than {_ENTRIES_A_NODE * nodes:,} entries"
            if described > _LARGEST_DESCRIPTION:
                return f"more than {_LARGEST_DESCRIPTION >> 20} MiB of names and descriptions"
    return None
