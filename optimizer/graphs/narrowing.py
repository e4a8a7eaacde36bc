"""Narrow convolutions of a graph: fewer channels, the same layers.

For timing only. The first channels are kept, whatever they are for, and scales and biases with them,
so the graph computes something of the right shape. It works on float graphs and behind Q/DQ.

Not handled: convolutions whose weight is computed, and layers on the residual stream: the caller
changes only channels inside of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import GraphError

__all__ = ["narrow_convolutions"]


def narrow_convolutions(model: ir.Model, channels: Mapping[str, tuple[int, int]]) -> None:
    """Cut convolutions in place.

    Args:
        model: A graph whose convolutions have the names of modules.
        channels: Input and output channels that are left, by name of the convolution.

    Raises:
        GraphError: There is no such convolution, or its weight is not a constant.
    """
    nodes = {str(node.name): node for node in model.graph if node.op_type == "Conv"}
    for name, (channels_in, channels_out) in channels.items():
        if name not in nodes:
            raise GraphError(
                f"the graph has no convolution {name}", hint="export it with resnet-opt export"
            )
        node = nodes[name]
        depth = channels_in
        if int(node.attributes.get_int("group", 1) or 1) > 1:
            depth = _array(node, 1).shape[1]
            node.attributes["group"] = ir.AttrInt64("group", channels_in // depth)
        _cut(node, 1, (channels_out, depth))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _cut(node, 2, (channels_out,))
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outputs:
                value.shape = None  # inferred again where it is needed


def _array(node: ir.Node, index: int) -> NDArray:
    """The constant at an input, stored as it is or behind a DequantizeLinear."""
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    stored = producer.inputs[0] if producer is not None else value
    if stored is None or stored.const_value is None:
        raise GraphError(f"the weight of {node.name} is not a constant")
    return stored.const_value.numpy()


def _cut(node: ir.Node, index: int, shape: tuple[int, ...]) -> None:
    """Keep the first channels of a weight (output, input) or a bias, and of its scales."""
    _array(node, index)  # raises for what is no constant
    value = node.inputs[index]
    assert value is not None
    producer = value.producer()
    if producer is None:
        _cut_constant(value, shape)
        return
    for position, part in enumerate(producer.inputs):
        if part is not None and part.const_value is not None:
            one_per_channel = position > 0 and len(part.const_value.shape) == 1
            if position == 0 or (one_per_channel and part.const_value.shape[0] != 1):
                _cut_constant(part, shape if position == 0 else shape[:1])


def _cut_constant(value: ir.Value, shape: tuple[int, ...]) -> None:
    assert value.const_value is not None
    array = value.const_value.numpy()
    cut = np.ascontiguousarray(array[tuple(slice(width) for width in shape)])
    value.const_value = ir.tensor(cut, name=value.name)
    value.shape = ir.Shape(cut.shape)
