"""Small edits of a graph that several passes make: constants, and what a value is."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["add_constant", "describe"]


def add_constant(graph: ir.Graph, name: str, array: NDArray) -> ir.Value:
    """Add an initializer; its type is the array's."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def describe(
    value: ir.Value,
    name: str,
    shape: ir.Shape | tuple[int, ...] | Mapping | None,
    kind: ir.DataType,
) -> None:
    """Name a value and say its type and, if it is known, its shape."""
    value.name = name
    value.dtype = kind
    if shape is not None:
        value.shape = ir.Shape(shape)
