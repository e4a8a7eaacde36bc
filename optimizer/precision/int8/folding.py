"""Folding BatchNorm into quantized layers: the integers stay, their scales change.

QAT exports keep BatchNorm after a convolution whose weight stands behind a pair, because no exporter
folds through that pair. A channel's factor gamma / sqrt(variance + epsilon) goes into the scale of
its weights, a negative one into the signs of the integers too, and a factor of 0 leaves integers 0.

``requires`` a graph whose pairs are taken out; ``ensures`` that every BatchNorm right after a
convolution that nobody else reads is gone.
Not handled: BatchNorm anywhere else, in training mode, or with computed statistics, which `analyse`
refuses; a pair between convolution and BatchNorm.
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
    """What one BatchNorm does to its convolution, by output channel.

    Attributes:
        factor: float64[O], by which outputs are multiplied.
        shift: float64[O], which is added then.
    """

    factor: NDArray[np.float64]
    shift: NDArray[np.float64]


def fold_batchnorm(graph: ir.Graph, quantized: Collection[str]) -> dict[str, Folded]:
    """Take out BatchNorm nodes; weights and biases are left to the caller.

    Args:
        graph: The graph; the convolution takes over the name of the BatchNorm's output.
        quantized: Names of tensors that the source quantizes.

    Returns:
        By the name of the convolution, what its weight and bias have to take over.

    Raises:
        GraphError: The source quantizes the tensor between a convolution and its BatchNorm.
    """
    folded: dict[str, Folded] = {}
    for node in list(graph):
        layer = _layer_of(node)
        if layer is None:
            continue
        before = layer.outputs[0]
        if before.name in quantized:
            raise GraphError(
                f"{before.name} is quantized between {layer.name} and its BatchNorm",
                hint="quantize after the BatchNorm, or fold it before quantizing",
            )
        gamma, beta, mean, variance = (_constant(node, index) for index in range(1, 5))
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        factor = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        folded[str(layer.name)] = Folded(factor, beta - mean * factor)
        name = node.outputs[0].name
        bypass(graph, node)
        before.name = name
    return folded


def _layer_of(node: ir.Node) -> ir.Node | None:
    """The convolution that a BatchNorm can be folded into."""
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
