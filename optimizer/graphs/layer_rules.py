"""Rules of the importing pass for layers: BatchNorm, MatMul, pooling and flattening.

The quantizer, its simulation and the engines' fusions know `Conv`, `Gemm`, `GlobalAveragePool` and
`Flatten`. Other exporters write the same operations with BatchNormalization, MatMul, ReduceMean,
AveragePool, Reshape and Squeeze.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.editing import add_constant, bypass, fresh_name
from optimizer.graphs.rewriting import (
    Rule,
    as_float64,
    constant_of,
    only_reader,
    producer_of,
    replace_node,
    sizes_of,
)

__all__ = ["LAYER_RULES", "set_constant"]


def set_constant(graph: ir.Graph, node: ir.Node, index: int, array: NDArray, name: str) -> None:
    """Give a node a constant of its own as an input; others that read the old one keep it."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    if old is not None and old.name in graph.initializers and len(list(old.uses())) == 1:
        old.const_value = ir.tensor(array, name=old.name)
        old.dtype, old.shape = old.const_value.dtype, ir.Shape(array.shape)
        return
    free = fresh_name(name, graph.initializers, "_")
    node.replace_input_with(index, add_constant(graph, free, array))


# --- BatchNorm ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Affine:
    """A layer and the function that follows it: float64[O] factors and shifts."""

    layer: ir.Node
    factor: NDArray[np.float64]
    shift: NDArray[np.float64]


def _foldable(node: ir.Node) -> _Affine | None:
    if node.op_type != "BatchNormalization" or node.domain:
        return None
    layer = producer_of(node.inputs[0], "Conv", "Gemm")
    if layer is None or only_reader(layer.outputs[0]) is not node:
        return None
    if any(constant_of(value) is None for value in (*node.inputs[1:5], layer.inputs[1])):
        return None
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None
    if has_bias and constant_of(layer.inputs[2]) is None:
        return None
    gamma, beta, mean, variance = (as_float64(value).reshape(-1) for value in node.inputs[1:5])
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    factor = gamma / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
    return _Affine(layer, factor, beta - mean * factor)


def _fold(graph: ir.Graph, node: ir.Node, match: _Affine) -> None:
    scale_layer(graph, match.layer, match.factor, match.shift)
    layer, old = match.layer, node.outputs[0]
    output, name = layer.outputs[0], old.name
    bypass(graph, node)
    output.name = name


def scale_layer(
    graph: ir.Graph, layer: ir.Node, factor: NDArray[np.float64], shift: NDArray[np.float64]
) -> None:
    """Make a Conv or Gemm compute ``factor * y + shift`` instead of ``y``, per output channel."""
    weight = as_float64(layer.inputs[1])
    transposed = layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0)
    shape = (1, -1) if transposed else (-1, *[1] * (weight.ndim - 1))
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None
    bias = as_float64(layer.inputs[2]).reshape(-1) if has_bias else 0.0
    names = _constant_names(layer)
    set_constant(graph, layer, 1, (weight * factor.reshape(shape)).astype(np.float32), names[0])
    set_constant(graph, layer, 2, (bias * factor + shift).astype(np.float32), names[1])


def _constant_names(layer: ir.Node) -> tuple[str, str]:
    label = layer.name or str(layer.outputs[0].name)
    return f"{label}.weight", f"{label}.bias"


# --- fully connected layers -----------------------------------------------------------------------


def _dense(node: ir.Node) -> bool | None:
    """MatMul of a tensor of rank 2 and a constant matrix."""
    if node.op_type != "MatMul" or node.domain:
        return None
    matrix, source = constant_of(node.inputs[1]), node.inputs[0]
    known = source is not None and source.shape is not None and len(source.shape) == 2
    return (known and matrix is not None and matrix.ndim == 2) or None


def _to_gemm(graph: ir.Graph, node: ir.Node, _match: Any) -> None:
    kernel, matrix = node.inputs[1], constant_of(node.inputs[1])
    assert kernel is not None
    assert matrix is not None
    label = node.name or str(node.outputs[0].name)
    weight = np.ascontiguousarray(matrix.T)
    free = fresh_name(f"{kernel.name}.transposed", graph.initializers, "_")
    inputs = [node.inputs[0], add_constant(graph, free, weight)]
    last = node
    add = only_reader(node.outputs[0])
    bias = _added_bias(add, node, len(weight)) if add is not None else None
    if add is not None and bias is not None:
        inputs.append(
            add_constant(graph, fresh_name(f"{label}.bias", graph.initializers, "_"), bias)
        )
        last = add
    gemm = ir.node("Gemm", inputs, attributes={"transB": 1}, name=node.name)
    replace_node(graph, last, gemm)
    if last is not node:
        graph.remove(node, safe=True)


def _added_bias(add: ir.Node, layer: ir.Node, outputs: int) -> NDArray | None:
    """The constant that an Add adds to a layer's output of rank 2, one value per output."""
    if add.op_type != "Add" or add.domain:
        return None
    others = [value for value in add.inputs if value is not layer.outputs[0]]
    bias = constant_of(others[0]) if len(others) == 1 else None
    if (
        bias is None
        or bias.size not in (1, outputs)
        or (bias.ndim > 1 and bias.shape[-1] != bias.size)
    ):
        return None
    return np.broadcast_to(bias.reshape(-1), (outputs,)).astype(np.float32).copy()


def _scaled_gemm(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type != "Gemm" or node.domain or node.attributes.get_int("transA", 0) != 0:
        return None
    constants = [constant_of(value) for value in node.inputs[1:] if value is not None]
    alpha, beta = (float(node.attributes.get_float(n, 1.0) or 0.0) for n in ("alpha", "beta"))
    if (alpha, beta) == (1.0, 1.0) or any(array is None for array in constants):
        return None
    return alpha, beta


def _unscale(graph: ir.Graph, node: ir.Node, match: tuple[float, float]) -> None:
    alpha, beta = match
    names = _constant_names(node)
    set_constant(graph, node, 1, (as_float64(node.inputs[1]) * alpha).astype(np.float32), names[0])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = (as_float64(node.inputs[2]) * beta).astype(np.float32)
        set_constant(graph, node, 2, bias, names[1])
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)


# --- pooling and flattening -----------------------------------------------------------------------


def _global_mean(node: ir.Node) -> str | None:
    """Whether a ReduceMean or AveragePool averages over the whole feature map.

    Returns:
        ``keep`` or ``drop``, for the two dimensions of size one.
    """
    source = node.inputs[0] if node.inputs else None
    if source is None or source.shape is None or len(source.shape) != 4 or node.domain:
        return None
    if node.op_type == "AveragePool":
        kernel = list(node.attributes.get_ints("kernel_shape", ()) or ())
        pads = node.attributes.get_ints("pads", ()) or ()
        automatic = node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
        whole = kernel == list(source.shape)[2:] and kernel != [1, 1]
        return "keep" if whole and not any(pads) and not automatic else None
    if node.op_type != "ReduceMean":
        return None
    given = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(node.attributes.get_ints("axes", ()) or ()) if given is None else given.reshape(-1)
    if sorted(int(a) % 4 for a in axes) != [2, 3]:
        return None
    return "keep" if node.attributes.get_int("keepdims", 1) else "drop"


def _to_global_pool(graph: ir.Graph, node: ir.Node, match: str) -> None:
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    pool = ir.node("GlobalAveragePool", [source], name=node.name)
    if match == "keep":
        replace_node(graph, node, pool)
        return
    pooled = pool.outputs[0]
    pooled.shape, pooled.type = ir.Shape([*list(source.shape)[:2], 1, 1]), source.type
    pooled.name = f"{node.outputs[0].name}.pooled"
    graph.insert_before(node, pool)
    label = node.name or str(node.outputs[0].name)
    flat = ir.node("Flatten", [pooled], attributes={"axis": 1}, name=f"{label}.flatten")
    replace_node(graph, node, flat)


def _flattens(node: ir.Node) -> bool | None:
    """Reshape or Squeeze from N x C x H x W to N x CHW."""
    if node.op_type not in {"Reshape", "Squeeze"} or node.domain or node.inputs[0] is None:
        return None
    sizes = sizes_of(node.inputs[0])
    if sizes is None or len(sizes) != 3:
        return None
    if node.op_type == "Squeeze":
        axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        return (axes is not None and sorted(int(a) % 4 for a in axes.reshape(-1)) == [2, 3]) or None
    # A row-major reshape to rows of C x H x W values has one row per image.
    return (_row_length(node) == math.prod(sizes)) or None


def _row_length(reshape: ir.Node) -> int | None:
    """Length of the rows that a Reshape to rank 2 produces."""
    target = constant_of(reshape.inputs[1])
    if target is not None and target.size != 2:
        return None
    if target is not None and int(target[1]) > 0:
        return int(target[1])
    shape = reshape.outputs[0].shape
    if shape is not None and len(shape) == 2 and isinstance(shape[1], int):
        return int(shape[1])
    for use in reshape.outputs[0].uses():
        weight = (
            constant_of(use.node.inputs[1]) if use.idx == 0 and len(use.node.inputs) > 1 else None
        )
        if use.node.op_type == "Gemm" and weight is not None:
            return int(weight.shape[1 if use.node.attributes.get_int("transB", 0) else 0])
        if use.node.op_type == "MatMul" and weight is not None and weight.ndim == 2:
            return int(weight.shape[0])
    if target is not None and [int(d) for d in target] == [0, -1]:
        return math.prod(sizes_of(reshape.inputs[0]) or [0])
    return None


def _to_flatten(graph: ir.Graph, node: ir.Node, _match: Any) -> None:
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    flat = ir.node("Flatten", [source], attributes={"axis": 1}, name=node.name)
    replace_node(graph, node, flat)
    flat.outputs[0].shape = ir.Shape([source.shape[0], math.prod(sizes_of(source) or ())])


def _already_flat(node: ir.Node) -> bool | None:
    """A Flatten or Reshape of a tensor that already is N x C."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type not in {"Flatten", "Reshape"} or node.domain or source is None:
        return None
    if source.shape is None or len(source.shape) != 2 or source.is_graph_input():
        return None
    if node.op_type == "Flatten":
        return (node.attributes.get_int("axis", 1) == 1) or None
    return (isinstance(source.shape[1], int) and _row_length(node) == source.shape[1]) or None


def _remove(graph: ir.Graph, node: ir.Node, _match: Any) -> None:
    node.resize_inputs(1)
    bypass(graph, node)


LAYER_RULES = (
    Rule("BatchNorm folded into the layer before it", _foldable, _fold),
    Rule("MatMul written as Gemm", _dense, _to_gemm),
    Rule("alpha and beta of a Gemm multiplied into its constants", _scaled_gemm, _unscale),
    Rule("average written as GlobalAveragePool", _global_mean, _to_global_pool),
    Rule("written as Flatten", _flattens, _to_flatten),
    Rule("flattening without effect removed", _already_flat, _remove),
)
