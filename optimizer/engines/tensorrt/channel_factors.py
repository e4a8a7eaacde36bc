"""Rewrites INT8 convolutions for TensorRT-RTX: one weight scale per layer, factors per channel after it.

With one scale per output channel, TensorRT-RTX 1.7 makes an INT8 convolution write FP32. With one scale
for all channels it writes FP16, half the bytes (``reports/tensorrt/placements.md``). So the graph is
rewritten for this compiler only: the integer weights stay, their common scale is a power of two, and the
difference per channel becomes a Mul after the convolution, before the bias. Scaling by a power of two is
exact; the only new rounding is that a sum is rounded to FP16 before its factor instead of after it.
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
"""Upper limit for a convolution's output in FP16, whose largest value is 65,504."""
_LEAST = 2.0**-14
"""The smallest normal FP16 number."""
_ROUNDING = 2.0**-14
"""How much rounding a factor to FP16 may change a channel's outputs, relative to the largest output of all
channels: a hundredth of a quantization step of the Q that follows, which has one scale for all of them."""


def write_with_factors(graph: Path, output: Path) -> int:
    """Write a graph whose INT8 convolutions are followed by a factor per channel.

    A convolution is left unchanged if its scales are not FP16, if it already has a single scale, or
    if factors that matter would lose precision.

    Args:
        graph: The explicit graph.
        output: The rewritten graph; not written if nothing changes.

    Returns:
        The number of convolutions changed.
    """
    model = open_onnx(graph).proto
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    nodes, changed = [], 0
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "Conv":
            continue
        scale_and_factors = _factors(node, producers, initializers)
        if scale_and_factors is None:
            continue
        changed += 1
        nodes += _split(model, node, producers[node.input[1]], initializers, scale_and_factors)
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        del model.graph.value_info[:]
        write_proto(model, output)
    return changed


def _factors(
    node: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    initializers: dict[str, onnx.TensorProto],
) -> tuple[float, NDArray[np.float16]] | None:
    """The common scale of a convolution's weights, and the factor of each channel."""
    source, weights = producers.get(node.input[0]), producers.get(node.input[1])
    for operand in (source, weights):
        if (
            operand is None
            or operand.op_type != "DequantizeLinear"
            or operand.input[1] not in initializers
        ):
            return None
    assert source is not None
    assert weights is not None
    if weights.input[0] not in initializers:
        return None
    integers = numpy_helper.to_array(initializers[weights.input[0]])
    scales = numpy_helper.to_array(initializers[weights.input[1]])
    step = numpy_helper.to_array(initializers[source.input[1]])
    if integers.dtype != np.int8 or scales.dtype != np.float16 or scales.ndim != 1 or step.ndim:
        return None
    # An upper bound on every sum of products, for any image.
    sums = 128.0 * np.abs(integers.astype(np.float64)).sum(axis=tuple(range(1, integers.ndim)))
    largest = float(sums.max() * float(step))
    if largest <= 0.0 or float(step) <= 0.0:
        return None
    exact = scales.astype(np.float64)
    # Factors are at most one, unless a sum would overflow; the common scale is a normal FP16 number.
    fits = 2.0 ** math.floor(math.log2(_LARGEST / largest))
    common = min(fits, max(_LEAST, 2.0 ** math.ceil(math.log2(exact[sums > 0].max()))))
    if common < _LEAST or exact.max() > _LARGEST * common:
        return None
    factors = (exact / common).astype(np.float16)
    changed = np.abs(factors.astype(np.float64) * common - exact) * sums
    if changed.max() > _ROUNDING * (exact * sums).max():
        return None  # factors in the subnormal range of FP16 lose too much precision
    return common, factors


def _split(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    weights: onnx.NodeProto,
    initializers: dict[str, onnx.TensorProto],
    scale_and_factors: tuple[float, NDArray[np.float16]],
) -> list[onnx.NodeProto]:
    """Change a convolution in place and return the nodes to insert after it."""
    common, factors = scale_and_factors
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
        values[f"{stem}.bias_by_channel"] = numpy_helper.to_array(initializers[bias]).reshape(shape)
        del node.input[2]
        after.append(
            helper.make_node("Add", [scaled, f"{stem}.bias_by_channel"], [output], f"{stem}.bias")
        )
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in values.items()
    )
    return after
