"""Graph edits shared by several passes: add constants, name values, insert and remove nodes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["add_constant", "bypass", "describe", "fresh_name", "insert_after", "make_cast"]


def add_constant(graph: ir.Graph, name: str, array: NDArray) -> ir.Value:
    """Add an initializer with the array's dtype."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def fresh_name(name: str, taken: Container[str], suffix: str) -> str:
    """The name, with the suffix repeated until it is unique."""
    while name in taken:
        name += suffix
    return name


def describe(
    value: ir.Value,
    name: str,
    shape: ir.Shape | tuple[int, ...] | Mapping | None,
    kind: ir.DataType,
) -> None:
    """Set a value's name, dtype and, if known, shape."""
    value.name = name
    value.dtype = kind
    if shape is not None:
        value.shape = ir.Shape(shape)


def make_cast(value: ir.Value, kind: ir.DataType, *, name: str, output: str) -> ir.Node:
    """Create a Cast of a tensor without adding it to the graph.

    Args:
        value: The tensor.
        kind: The target dtype.
        name: Name of the node.
        output: Name of its output.
    """
    cast = ir.node("Cast", [value], attributes={"to": kind}, name=name)
    describe(cast.outputs[0], output, value.shape, kind)
    return cast


def insert_after(graph: ir.Graph, value: ir.Value, nodes: ir.Node | Sequence[ir.Node]) -> None:
    """Insert nodes right after the producer of a tensor, or at the start for a graph input."""
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)


def bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node with one input and one output; graph outputs keep their names."""
    source, value = node.inputs[0], node.outputs[0]
    assert source is not None
    if value.is_graph_output():
        index = next(i for i, output in enumerate(graph.outputs) if output is value)
        name, shape, kind = value.name, value.shape, value.type
        value.name = f"{name}.bypassed"
        source.name, source.shape, source.type = name, source.shape or shape, kind
        graph.outputs[index] = source
    ir.convenience.replace_all_uses_with(value, source)
    graph.remove(node, safe=True)
