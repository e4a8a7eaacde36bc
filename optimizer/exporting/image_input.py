"""uint8 image input: transposes and normalizes pixels inside the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optimizer.graphs.editing import add_constant

if TYPE_CHECKING:
    from optimizer.data import Preprocessing

__all__ = ["use_uint8_input"]


def use_uint8_input(model: ir.Model, preprocessing: Preprocessing) -> bool:
    """Replace the N x C x H x W float32 input by N x H x W x C uint8 and normalize in the graph.

    ``(x / 255 - mean) / std`` becomes ``x * (1 / (255 std)) + (-mean / std)`` on the whole image,
    *before* the first convolution pads it. Folding mean and std into that convolution's weights
    would be wrong at the borders, where the padding is zero in normalized units.
    """
    graph = model.graph
    images = graph.inputs[0]
    assert images.shape is not None
    batch, channels, height, width = images.shape
    std = np.asarray(preprocessing.std, np.float64)
    mean = np.asarray(preprocessing.mean, np.float64)
    scale, shift = (
        add_constant(graph, f"normalize.{name}", values.reshape(1, -1, 1, 1).astype(np.float32))
        for name, values in (("scale", 1.0 / (255.0 * std)), ("shift", -mean / std))
    )

    first = graph[0]
    # Cast before Transpose: TensorRT does not transpose 8-bit pixels.
    steps: list[tuple[str, str, list[ir.Value], dict[str, Any]]] = [
        ("Cast", "cast", [], {"to": ir.DataType.FLOAT}),
        ("Transpose", "nchw", [], {"perm": [0, 3, 1, 2]}),
        ("Mul", "mul", [scale], {}),
        ("Add", "add", [shift], {}),
    ]
    nodes: list[ir.Node] = []
    value = images
    for operation, name, constants, attributes in steps:
        node = ir.node(
            operation, [value, *constants], attributes=attributes, name=f"normalize.{name}"
        )
        value = node.outputs[0]
        value.name = node.name
        value.dtype = ir.DataType.FLOAT
        value.shape = ir.Shape(
            [batch, height, width, channels] if name == "cast" else [batch, channels, height, width]
        )
        nodes.append(node)

    for user in list(images.uses()):
        if user.node is not nodes[0]:
            user.node.replace_input_with(user.idx, value)
    graph.insert_before(first, nodes)
    images.shape = ir.Shape([batch, height, width, channels])
    images.dtype = ir.DataType.UINT8
    return True
