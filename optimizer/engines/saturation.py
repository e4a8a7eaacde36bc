"""Detects INT8 weights whose 16-bit sums saturate on a CPU without VNNI."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optimizer.graphs.onnx_files import open_onnx
from optimizer.targets.rules import rules_for

__all__ = ["saturation_note"]


def saturation_note(graph: Path, target: str) -> str | None:
    """Report how many channels of a graph may saturate on this CPU.

    Graphs written by `quantize` for this target have none. Others may saturate silently.

    Args:
        graph: A Q/DQ graph.
        target: ``openvino`` or ``onnxruntime``.

    Returns:
        One line; ``None`` if products are accumulated in 32 bits or no weight is INT8.
    """
    from onnx import TensorProto, numpy_helper

    from optimizer.precision.int8.rounding import WeightGrid, unsafe_channels

    rules = rules_for(target)
    if rules.pairs == "free":
        return None
    proto = open_onnx(graph).proto.graph
    stored = {t.name: t for t in proto.initializer if t.data_type == TensorProto.INT8}
    weights = {
        node.output[0]: stored[node.input[0]]
        for node in proto.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    channels = unsafe = 0
    for node in proto.node:
        if node.op_type not in {"Conv", "Gemm"} or node.input[1] not in weights:
            continue
        attributes = {a.name: a.i for a in node.attribute if a.name in {"group", "transB"}}
        integers = numpy_helper.to_array(weights[node.input[1]])
        if node.op_type == "Gemm" and not attributes.get("transB", 0):
            integers = np.ascontiguousarray(integers.T)
        saturating = unsafe_channels(integers, WeightGrid.of(rules, attributes.get("group", 1)))
        channels, unsafe = channels + len(saturating), unsafe + int(saturating.sum())
    if not channels:
        return None
    if not unsafe:
        return "no VNNI: INT8 products are accumulated in 16 bits; none of these weights saturate"
    return (
        f"no VNNI: {unsafe} of {channels} channels have weights whose products saturate in 16 bits; "
        f"resnet-opt quantize {graph.name} --precision int8 --target {target} rounds them to safe values"
    )
