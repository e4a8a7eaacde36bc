"""Fold BatchNorm into quantized layers: the integers stay, their scales change.

QAT exports keep BatchNorm after a convolution with a Q/DQ pair on its weight, because exporters do
not fold through the pair. A channel's factor gamma / sqrt(variance + epsilon) is multiplied into the
scale of its weights; a negative factor also negates the integers, and a factor of 0 sets them to 0.

``requires`` a graph whose pairs have been removed; ``ensures`` that every BatchNorm that directly
follows a convolution and is its only reader is gone.
Not handled: BatchNorm anywhere else, in training mode, or with computed statistics, which `analyse`
rejects; a pair between convolution and BatchNorm.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import GraphError
from optimizer.graphs.editing import bypass

__all__ = ["Folded", "fold_batchnorm"]


@dataclass(frozen=True)
class Folded:
    """The affine function that one BatchNorm applies to its convolution, per output channel.

    Attributes:
        factor: float64[O], multiplied with the outputs.
        shift: float64[O], added afterwards.
    """

    factor: NDArray[np.float64]
    shift: NDArray[np.float64]


def fold_batchnorm(graph: ir.Graph, quantized: Collection[str]) -> dict[str, Folded]:
    """Remove BatchNorm nodes; the caller updates weights and biases.

    Args:
        graph: The graph; the output of the convolution gets the name of the BatchNorm's output.
        quantized: Names of tensors that the source quantizes.

    Returns:
        The function to fold into weight and bias, by the name of the convolution.

    Raises:
        GraphError: The source quantizes the tensor between a convolution and its BatchNorm.
    """
    folded: dict[str, Folded] = {}
    for node in list(graph):
        layer = _layer_of(node)
        if layer is None:
            continue
        convolved = layer.outputs[0]
        if convolved.name in quantized:
            raise GraphError(
                f"{convolved.name} is quantized between {layer.name} and its BatchNorm",
                hint="quantize after the BatchNorm, or fold it before quantizing",
            )
        gamma, beta, mean, variance = (_constant(node, index) for index in range(1, 5))
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        factor = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        folded[str(layer.name)] = Folded(factor, beta - mean * factor)
        name = node.outputs[0].name
        bypass(graph, node)
        convolved.name = name
    return folded


def _layer_of(node: ir.Node) -> ir.Node | None:
    """The convolution that a BatchNorm can be folded into, or ``None``."""
    if node.op_type != "BatchNormalization" or node.attributes.get_int("training_mode", 0) != 0:
        return None
    source = node.inputs[0]
    layer = source.producer() if source is not None else None
    constant = all(v is not None and v.const_value is not None for v in node.inputs[1:5])
    if source is None or layer is None or layer.op_type != "Conv" or not constant:
        return None
    return layer if len(source.uses()) == 1 and not source.is_graph_output() else None


def _constant(node: ir.Node, index: int) -> NDArray[np.float64]:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)
