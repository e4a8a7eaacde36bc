"""Edits of a graph that several passes make: constants, names, nodes put in and taken out."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["add_constant", "bypass", "describe", "fresh_name", "insert_after", "make_cast"]


def add_constant(graph: ir.Graph, name: str, array: NDArray) -> ir.Value:
    """Add an initializer; its type is the array's."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def fresh_name(name: str, taken: Container[str], suffix: str) -> str:
    """The name itself, or with as many suffixes as it takes to be new."""
    while name in taken:
        name += suffix
    return name


def describe(
    value: ir.Value,
    name: str,
    shape: ir.Shape | tuple[int, ...] | Mapping | None,
    kind: ir.DataType,
) -> None:
    """Give a value its name, its type and, if it is known, its shape."""
    value.name = name
    value.dtype = kind
    if shape is not None:
        value.shape = ir.Shape(shape)


def make_cast(value: ir.Value, kind: ir.DataType, *, name: str, output: str) -> ir.Node:
    """A Cast of a tensor to another type, not yet in the graph.

    Args:
        value: The tensor.
        kind: The type.
        name: Name of the node.
        output: Name of its output.
    """
    cast = ir.node("Cast", [value], attributes={"to": kind}, name=name)
    describe(cast.outputs[0], output, value.shape, kind)
    return cast


def insert_after(graph: ir.Graph, value: ir.Value, nodes: ir.Node | Sequence[ir.Node]) -> None:
    """Put nodes right after the one that computes a tensor; first, if it is an input."""
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)


def bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Take out a node of one input and one output; an output of the graph keeps its name."""
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
