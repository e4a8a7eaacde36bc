"""Rules of the importing pass for factors and offsets per channel behind a layer.

TensorFlow's converters (tf2onnx, Keras's ``export``) write a BatchNorm as Mul and Add with one constant
per channel. Behind a convolution or a Gemm both go into its weights and its bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.editing import bypass
from optimizer.graphs.layer_rules import scale_layer
from optimizer.graphs.rewriting import Rule, as_float64, constant_of, only_reader, producer_of

__all__ = ["CHANNEL_RULES"]

_RANKS = {"Conv": 4, "Gemm": 2}
_OPERATIONS = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass(frozen=True)
class _PerChannel:
    """``factor * y + shift`` behind a layer, whose output is input ``index`` of the node."""

    layer: ir.Node
    index: int
    factor: NDArray[np.float64]
    shift: NDArray[np.float64]


def _per_channel(node: ir.Node) -> _PerChannel | None:
    """Mul, Add, Sub or Div of a layer's output, read by nothing else, and constants per channel.

    Not matched: a constant divided by the output, and constants that differ by position.
    """
    if node.op_type not in _OPERATIONS or node.domain or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        layer = producer_of(node.inputs[index], "Conv", "Gemm")
        constant = constant_of(node.inputs[1 - index])
        if layer is None or constant is None or not _is_own(layer, node):
            continue
        values = _values(constant.astype(np.float64), layer)
        if values is None or (node.op_type == "Div" and (index == 1 or not values.all())):
            return None
        return _PerChannel(layer, index, *_affine(node.op_type, index, values))
    return None


def _affine(
    operation: str, index: int, values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if operation == "Mul":
        return values, zeros
    if operation == "Div":
        return 1 / values, zeros
    if operation == "Add":
        return ones, values
    return (ones, -values) if index == 0 else (-ones, values)


def _is_own(layer: ir.Node, node: ir.Node) -> bool:
    """Whether a layer has constants, no factors of its own, and only this reader."""
    constants = [layer.inputs[1], *(v for v in layer.inputs[2:] if v is not None)]
    alpha, beta = (layer.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return (
        only_reader(layer.outputs[0]) is node
        and all(constant_of(value) is not None for value in constants)
        and (alpha, beta) == (1.0, 1.0)
    )


def _values(constant: NDArray[np.float64], layer: ir.Node) -> NDArray[np.float64] | None:
    """One value per output channel; ``None`` if the constant is not broadcast along all others."""
    rank, weight = _RANKS[layer.op_type], as_float64(layer.inputs[1])
    transposed = layer.op_type == "Conv" or bool(layer.attributes.get_int("transB", 0))
    channels = weight.shape[0] if transposed else weight.shape[1]
    shape = (1,) * (rank - constant.ndim) + constant.shape
    allowed = (1, channels, *[1] * (rank - 2))
    if len(shape) != rank or any(
        size not in {1, limit} for size, limit in zip(shape, allowed, strict=True)
    ):
        return None
    return np.broadcast_to(constant.reshape(-1), (channels,)).copy()


def _fold(graph: ir.Graph, node: ir.Node, match: _PerChannel) -> None:
    scale_layer(graph, match.layer, match.factor, match.shift)
    output, name = match.layer.outputs[0], node.outputs[0].name
    if match.index == 1:
        node.replace_input_with(0, output)
    node.resize_inputs(1)
    bypass(graph, node)
    output.name = name


CHANNEL_RULES = (
    Rule("Mul or Add per channel folded into the layer before it", _per_channel, _fold),
)
