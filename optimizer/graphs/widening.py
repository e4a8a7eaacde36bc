"""FP16, BF16 and FP64 files as FP32 graphs.

Calibration, the quantizer and every precision of this package start from FP32. A half file has the
same weights in FP32, and `to_half` rounds them back to the same bits. A double file loses digits
that no engine here computes with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from optimizer.errors import GraphError
from optimizer.graphs.rewriting import Change
from optimizer.graphs.source_ends import PRECISION_OF

__all__ = ["float_types", "widen"]

_FLOAT = 1
_OTHERS = {number: name for number, name in PRECISION_OF.items() if number != _FLOAT}


def float_types(proto: Any) -> dict[str, int]:
    """Number of weights and other constants of rank 1 and more, by floating-point type."""
    counts: dict[str, int] = {}
    for tensor in _tensors(proto.graph):
        if tensor.data_type in PRECISION_OF and tensor.dims:
            name = PRECISION_OF[tensor.data_type]
            counts[name] = counts.get(name, 0) + 1
    return counts


def widen(proto: Any, name: str) -> list[Change]:
    """Convert every floating-point tensor of a model to FP32, in place.

    Raises:
        GraphError: A constant exceeds the range of FP32.
    """
    from onnx import numpy_helper

    changed: dict[str, int] = {}
    for tensor in _tensors(proto.graph):
        if tensor.data_type not in _OTHERS:
            continue
        kind = _OTHERS[tensor.data_type]
        with np.errstate(over="ignore"):
            exact = numpy_helper.to_array(tensor)
            array = exact.astype(np.float32)
        if np.isinf(array).sum() > np.isinf(exact.astype(np.float64)).sum():
            raise GraphError(
                f"{tensor.name} of {name} has values outside the range of FP32",
                hint="export it in float32",
            )
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        changed[kind] = changed.get(kind, 0) + 1
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype"} and attribute.i in _OTHERS:
                kind = _OTHERS[attribute.i]
                attribute.i = _FLOAT
                changed.setdefault(kind, 0)
    if changed:
        del proto.graph.value_info[:]  # the types in it are no longer true
    return [
        Change(f"{kind} widened to fp32", f"{count} constants") for kind, count in changed.items()
    ]


def _tensors(graph: Any) -> Iterator[Any]:
    """Constants of a graph: initializers, and tensors in attributes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)
