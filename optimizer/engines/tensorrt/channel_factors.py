"""INT8 convolutions as TensorRT-RTX writes the fewest bytes for: one scale a layer, factors after it.

With a scale for each output channel, TensorRT-RTX 1.7 lets an INT8 convolution write FP32. With one scale
for all channels it writes FP16, which is half of the bytes (``reports/tensorrt/placements.md``). So the
graph is written that way for its compiler alone: the weights keep their integers, their common scale is
a power of two, and what differs by channel is a Mul after the convolution, before the bias. Scales by
powers of two are exact; what is new is that a sum is rounded to FP16 before its factor and not after.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from optimizer.graphs.onnx_files import open_onnx, write_proto

__all__ = ["write_with_factors"]

_LARGEST = 30_000.0
"""Of a convolution's output in FP16, which ends at 65,504."""
_LEAST = 2.0**-14
"""The smallest number of which FP16 has all digits."""
_ROUNDING = 2.0**-14
"""How much rounding a factor to FP16 may change a channel's outputs, in units of the largest output of all
channels: a hundredth of a step of the Q that follows, which has one scale for all of them."""


def write_with_factors(graph: Path, output: Path) -> int:
    """Write a graph with the factors of its INT8 convolutions behind them.

    A convolution is left as it is where its scales are not FP16, where it has one scale already, or
    where factors that matter would lose digits.

    Args:
        graph: The explicit graph.
        output: The same network for the compiler; not written if nothing is to be changed.

    Returns:
        How many convolutions were changed.
    """
    model = open_onnx(graph).proto
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes, changed = [], 0
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "Conv":
            continue
        parts = _parts(node, makers, held)
        if parts is None:
            continue
        changed += 1
        nodes += _split(model, node, makers[node.input[1]], held, parts)
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        del model.graph.value_info[:]
        write_proto(model, output)
    return changed


def _parts(
    node: onnx.NodeProto,
    makers: dict[str, onnx.NodeProto],
    held: dict[str, onnx.TensorProto],
) -> tuple[float, NDArray[np.float16]] | None:
    """The common scale of a convolution's weights, and the factor of each channel."""
    source, weights = makers.get(node.input[0]), makers.get(node.input[1])
    for one in (source, weights):
        if one is None or one.op_type != "DequantizeLinear" or one.input[1] not in held:
            return None
    assert source is not None
    assert weights is not None
    if weights.input[0] not in held:
        return None
    integers = numpy_helper.to_array(held[weights.input[0]])
    scales = numpy_helper.to_array(held[weights.input[1]])
    step = numpy_helper.to_array(held[source.input[1]])
    if integers.dtype != np.int8 or scales.dtype != np.float16 or scales.ndim != 1 or step.ndim:
        return None
    # No sum of products is larger than this, whatever the image.
    sums = 128.0 * np.abs(integers.astype(np.float64)).sum(axis=tuple(range(1, integers.ndim)))
    largest = float(sums.max() * float(step))
    if largest <= 0.0 or float(step) <= 0.0:
        return None
    exact = scales.astype(np.float64)
    # Factors of at most one, unless a sum would overflow; and a number of which FP16 has all digits.
    fits = 2.0 ** math.floor(math.log2(_LARGEST / largest))
    common = min(fits, max(_LEAST, 2.0 ** math.ceil(math.log2(exact[sums > 0].max()))))
    if common < _LEAST or exact.max() > _LARGEST * common:
        return None
    factors = (exact / common).astype(np.float16)
    changed = np.abs(factors.astype(np.float64) * common - exact) * sums
    if changed.max() > _ROUNDING * (exact * sums).max():
        return None  # factors so small that FP16 has few digits for them
    return common, factors


def _split(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    weights: onnx.NodeProto,
    held: dict[str, onnx.TensorProto],
    parts: tuple[float, NDArray[np.float16]],
) -> list[onnx.NodeProto]:
    """Change a convolution in place; the nodes that follow it."""
    common, factors = parts
    stem, output = node.name, node.output[0]
    shape = (1, -1, 1, 1)
    values: dict[str, NDArray[np.generic]] = {
        f"{stem}.common_scale": np.array(common, np.float16),
        f"{stem}.common_zero_point": np.array(0, np.int8),
        f"{stem}.factor": factors.reshape(shape),
    }
    weights.input[1] = f"{stem}.common_scale"
    if len(weights.input) > 2:
        weights.input[2] = f"{stem}.common_zero_point"
    kept = [attribute for attribute in weights.attribute if attribute.name != "axis"]
    del weights.attribute[:]
    weights.attribute.extend(kept)
    product, scaled = f"{output}.product", f"{output}.scaled"
    bias = node.input[2] if len(node.input) > 2 else None
    node.output[0] = product
    after = [
        helper.make_node(
            "Mul", [product, f"{stem}.factor"], [scaled if bias else output], f"{stem}.scale"
        )
    ]
    if bias:
        values[f"{stem}.bias_by_channel"] = numpy_helper.to_array(held[bias]).reshape(shape)
        del node.input[2]
        after.append(
            helper.make_node("Add", [scaled, f"{stem}.bias_by_channel"], [output], f"{stem}.bias")
        )
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in values.items()
    )
    return after
