"""An independent oracle: executes a Q/DQ ResNet in NumPy exactly as the ONNX specification defines it.

It shares no code with the quantizer, the simulation or an engine, and only tests use it. A layer
whose inputs are both dequantized is computed exactly: integer multiplication and accumulation
(im2col, int64), one multiplication by the scales, bias, one rounding to float32. Any difference of an
engine comes from the engine's own arithmetic.

Sources of a difference of one quantization step (never more, per quantized tensor):

* *ties*: QuantizeLinear divides by the scale and rounds half to even; an engine that multiplies by
  the reciprocal, or sums in another order, may round a tie the other way;
* *bias*: integer kernels add the bias as int32 in units of the input scale times the weight scale,
  which rounds it.

Source: ONNX operator reference, QuantizeLinear-19, DequantizeLinear-19, Conv-11.
Not handled: operations other than those of a lowered ResNet; these are rejected by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import GraphError

__all__ = ["execute"]

Array = NDArray[Any]


def execute(
    model: ir.Model, inputs: Mapping[str, Array], watched: Iterable[str] = ()
) -> dict[str, Array]:
    """Execute a graph.

    Args:
        model: A Q/DQ graph of a residual network, or a part of one.
        inputs: The graph's inputs by name.
        watched: Tensors to return in addition to the graph's outputs.

    Returns:
        Tensors by name.

    Raises:
        GraphError: The graph has an unsupported operation.
    """
    values: dict[str, Array] = dict(inputs)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        values[name] = value.const_value.numpy()
    sources = {str(v.name): n for n in model.graph for v in n.outputs}
    for node in model.graph:
        operation = _OPERATIONS.get(node.op_type)
        if operation is None:
            raise GraphError(f"{node.name}: {node.op_type} is no operation of a lowered ResNet")
        names = [None if v is None else str(v.name) for v in node.inputs]
        if node.op_type in {"Conv", "Gemm"}:
            result = _layer(node, names, values, sources)
        else:
            result = operation(node, [values[n] for n in names if n is not None])
        values[str(node.outputs[0].name)] = result
    requested = [*(str(v.name) for v in model.graph.outputs), *watched]
    return {name: values[name] for name in requested}


# --- quantization ------------------------------------------------------------------------------


def _along(parameter: Array, rank: int, axis: int) -> Array:
    """A per-channel scale or zero point, reshaped to broadcast."""
    if parameter.ndim == 0 or parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


def _quantize(node: ir.Node, inputs: list[Array]) -> Array:
    x, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else np.uint8(0)
    axis = node.attributes.get_int("axis", 1)
    limits = np.iinfo(zero.dtype)
    # The quotient is rounded to the type of x before it is rounded to an integer.
    whole = np.rint((x / _along(scale, x.ndim, axis)).astype(x.dtype).astype(np.float64))
    shifted = whole + _along(np.asarray(zero), x.ndim, axis).astype(np.float64)
    return np.clip(shifted, limits.min, limits.max).astype(zero.dtype)


def _dequantize(node: ir.Node, inputs: list[Array]) -> Array:
    integers, scale = inputs[0], inputs[1]
    axis = node.attributes.get_int("axis", 1)
    centred = integers.astype(np.int64)
    if len(inputs) > 2:
        centred = centred - _along(inputs[2], integers.ndim, axis).astype(np.int64)
    product = centred * _along(scale, integers.ndim, axis).astype(np.float64)
    return np.asarray(product.astype(scale.dtype))


# --- layers ------------------------------------------------------------------------------------


def _layer(
    node: ir.Node, names: list[str | None], values: dict[str, Array], sources: dict[str, ir.Node]
) -> Array:
    """Conv or Gemm: in int64 if both inputs are dequantized, else in float64."""
    operands, factors = [], np.float64(1.0)
    kind = values[str(names[0])].dtype
    integer = all(_is_dequantized(sources.get(str(n))) for n in names[:2])
    for name in names[:2]:
        assert name is not None
        if not integer:
            operands.append(values[name].astype(np.float64))
            continue
        source = sources[name]
        parts = [values[str(v.name)] for v in source.inputs if v is not None]
        whole = parts[0].astype(np.int64)
        if len(parts) > 2:
            axis = source.attributes.get_int("axis", 1)
            whole = whole - _along(parts[2], whole.ndim, axis).astype(np.int64)
        operands.append(whole)
        factors = factors * parts[1].astype(np.float64)
    bias = values[names[2]].astype(np.float64) if len(names) > 2 and names[2] else 0.0
    if node.op_type == "Gemm":
        if not node.attributes.get_int("transB", 0):
            operands[1] = operands[1].T
        sums = operands[0] @ operands[1].T
    else:
        sums = _convolve(node, *operands)
    shape = (-1, *([1] * (sums.ndim - 2)))
    scaled = sums * np.asarray(factors).reshape(-1).reshape(shape)
    return np.asarray((scaled + np.asarray(bias).reshape(-1).reshape(shape)).astype(kind))


def _is_dequantized(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _convolve(node: ir.Node, x: Array, weight: Array) -> Array:
    """Sums of products, N x O x H x W, in the type of the operands; padding counts as zero."""
    groups = node.attributes.get_int("group", 1)
    kernel = weight.shape[2:]
    columns = [_columns(node, part, kernel, 0) for part in np.split(x, groups, axis=1)]
    filters = np.split(weight.reshape(len(weight), -1), groups)
    parts = [
        np.einsum("nkhw,ok->nohw", column, matrix, optimize=True)
        for column, matrix in zip(columns, filters, strict=True)
    ]
    return np.concatenate(parts, axis=1)


def _columns(node: ir.Node, x: Array, kernel: tuple[int, ...], padding: float) -> Array:
    """im2col: N x (C kH kW) x H x W."""
    pads = list(node.attributes.get_ints("pads", ()) or (0, 0, 0, 0))
    strides = list(node.attributes.get_ints("strides", ()) or (1, 1))
    dilations = list(node.attributes.get_ints("dilations", ()) or (1, 1))
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise GraphError(f"{node.name} has auto_pad, which the oracle does not support")
    border = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
    wide = np.pad(x, border, constant_values=padding)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(wide, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    n, channels, height, width = windows.shape[:4]
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, channels * np.prod(kernel), height, width)


# --- the rest ----------------------------------------------------------------------------------


def _max_pool(node: ir.Node, inputs: list[Array]) -> Array:
    (x,) = inputs
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()) or ())
    if node.attributes.get_int("ceil_mode", 0):
        raise GraphError(f"{node.name} has ceil_mode, which the oracle does not support")
    lowest = -np.inf if x.dtype.kind not in {"i", "u"} else np.iinfo(x.dtype).min
    columns = _columns(node, x, kernel, lowest)
    n, _, height, width = columns.shape
    return np.asarray(columns.reshape(n, x.shape[1], -1, height, width).max(axis=2))


def _global_average_pool(_: ir.Node, inputs: list[Array]) -> Array:
    (x,) = inputs
    return np.asarray(x.astype(np.float64).mean(axis=(2, 3), keepdims=True).astype(x.dtype))


def _flatten(_: ir.Node, inputs: list[Array]) -> Array:
    return inputs[0].reshape(len(inputs[0]), -1)


def _cast(node: ir.Node, inputs: list[Array]) -> Array:
    kind = ir.DataType(node.attributes.get_int("to", 0))
    return inputs[0].astype(ml_dtypes.bfloat16 if kind == ir.DataType.BFLOAT16 else kind.numpy())


def _transpose(node: ir.Node, inputs: list[Array]) -> Array:
    return inputs[0].transpose(list(node.attributes.get_ints("perm", ()) or ()) or None)


_OPERATIONS: dict[str, Callable[[ir.Node, list[Array]], Array]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": lambda _, inputs: inputs[0],
    "Gemm": lambda _, inputs: inputs[0],
    "Relu": lambda _, inputs: np.maximum(inputs[0], 0),
    "Add": lambda _, inputs: inputs[0] + inputs[1],
    "Mul": lambda _, inputs: inputs[0] * inputs[1],
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global_average_pool,
    "Flatten": _flatten,
    "Cast": _cast,
    "Transpose": _transpose,
}
