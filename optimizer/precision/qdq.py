"""Write Q/DQ into a graph: pairs on tensors, quantized weights and biases."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.editing import add_constant, describe, insert_after

__all__ = ["replace_bias", "write_bias", "write_float_layer", "write_pair", "write_weight"]


def write_pair(
    graph: ir.Graph,
    tensor: str,
    scale: NDArray,
    zero_point: NDArray,
    readers: Iterable[tuple[ir.Node, int]],
) -> None:
    """Insert a Q/DQ pair after a tensor's producer, for the given readers only.

    Args:
        graph: The graph.
        tensor: Prefix of the names of the pair.
        scale: One value.
        zero_point: One value; its dtype is that of the quantized tensor.
        readers: Nodes that will read the pair, each with the index of its input.
    """
    uses = list(readers)
    first, index = uses[0]
    source = first.inputs[index]
    assert source is not None
    constants = [
        add_constant(graph, f"{tensor}.scale", scale),
        add_constant(graph, f"{tensor}.zero_point", zero_point),
    ]
    quantize = ir.node("QuantizeLinear", [source, *constants], name=f"{tensor}.quantize")
    stored = quantize.outputs[0]
    dequantize = ir.node("DequantizeLinear", [stored, *constants], name=f"{tensor}.dequantize")
    kind = constants[1].dtype
    assert kind is not None
    describe(stored, f"{tensor}.quantized", source.shape, kind)
    describe(dequantize.outputs[0], f"{tensor}.dequantized", source.shape, ir.DataType.FLOAT)
    insert_after(graph, source, [quantize, dequantize])
    for node, input_index in uses:
        node.replace_input_with(input_index, dequantize.outputs[0])


def write_float_layer(graph: ir.Graph, node: ir.Node, weight: NDArray, bias: NDArray) -> None:
    """Replace a layer's weight and bias by others in float.

    Args:
        graph: The graph.
        node: A Conv or Gemm with a constant weight.
        weight: float32, output channels first.
        bias: float32[O]; added if the layer has none.
    """
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        weight = np.ascontiguousarray(weight.T)
    old = node.inputs[1]
    assert old is not None
    graph.initializers.pop(str(old.name))
    node.replace_input_with(1, add_constant(graph, str(old.name), weight))
    replace_bias(graph, node, bias)


def replace_bias(graph: ir.Graph, node: ir.Node, bias: NDArray) -> None:
    """Replace a layer's bias (float32[O]), or add one."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        graph.initializers.pop(str(node.inputs[2].name))
    else:
        node.resize_inputs(3)
    node.replace_input_with(2, add_constant(graph, f"{node.name}.bias", bias.astype(np.float32)))


def write_weight(graph: ir.Graph, node: ir.Node, stored: NDArray, scale: NDArray) -> None:
    """Replace a layer's float weight by a quantized one and a DequantizeLinear.

    Args:
        graph: The graph.
        node: A Conv or Gemm with a constant weight.
        stored: The quantized weight, output channels first; the zero points are zero, of its dtype.
        scale: One value per output channel.
    """
    axis = 0
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        stored, axis = np.ascontiguousarray(stored.T), 1
    old = node.inputs[1]
    assert old is not None
    stem = f"{node.name}.weight"
    constants = {"q": stored, "scale": scale, "zero_point": np.zeros(len(scale), stored.dtype)}
    inputs = [add_constant(graph, f"{stem}.{part}", array) for part, array in constants.items()]
    dequantize = ir.node(
        "DequantizeLinear", inputs, attributes={"axis": axis}, name=f"{stem}.dequantize"
    )
    describe(dequantize.outputs[0], f"{stem}.dequantized", stored.shape, ir.DataType.FLOAT)
    graph.insert_before(node, dequantize)
    node.replace_input_with(1, dequantize.outputs[0])
    graph.initializers.pop(str(old.name))


def write_bias(graph: ir.Graph, node: ir.Node, stored: NDArray, scale: NDArray) -> None:
    """Replace a layer's bias by an INT32 bias and a DequantizeLinear.

    Args:
        graph: The graph.
        node: A layer whose third input is a constant.
        stored: int32[O]; the zero point is zero.
        scale: float32[O], input scale times weight scale.
    """
    old = node.inputs[2]
    assert old is not None
    stem = f"{node.name}.bias"
    graph.initializers.pop(str(old.name))
    inputs = [
        add_constant(graph, f"{stem}.{part}", array)
        for part, array in (("q", stored), ("scale", scale))
    ]
    dequantize = ir.node(
        "DequantizeLinear", inputs, attributes={"axis": 0}, name=f"{stem}.dequantize"
    )
    describe(dequantize.outputs[0], f"{stem}.dequantized", stored.shape, ir.DataType.FLOAT)
    graph.insert_before(node, dequantize)
    node.replace_input_with(2, dequantize.outputs[0])
