"""Graphs as other quantizers write them: by ONNX Runtime itself, and imitations of the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.graphs.topology import WEIGHTED
from tests.precision.networks import images


class _Images:
    """Calibration data reader for ONNX Runtime's quantizer."""

    def __init__(self, batch: np.ndarray) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"images": batch}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def by_onnxruntime(
    model: ir.Model,
    *,
    activations: str = "s8",
    weights: str = "s8",
    per_channel: bool = True,
    symmetric: bool = False,
    operators: bool = False,
    batch: np.ndarray | None = None,
) -> ir.Model:
    """A graph quantized by ``onnxruntime.quantization.quantize_static``."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    types = {"s8": QuantType.QInt8, "u8": QuantType.QUInt8}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with TemporaryDirectory() as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            ir.save(model, source)
            quantize_static(
                source,
                target,
                _Images(images(64, 1) if batch is None else batch),
                quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
                activation_type=types[activations],
                weight_type=types[weights],
                per_channel=per_channel,
                extra_options={"ActivationSymmetric": symmetric},
            )
            return ir.load(target)
    finally:
        logging.disable(before)


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def by_pairs(
    model: ir.Model,
    *,
    per_channel: bool = True,
    zero_points: bool = True,
    scale: float = 0.05,
    activations: bool = True,
) -> ir.Model:
    """Pairs as ModelOpt and QAT exports write them, in place.

    Float weights have a pair each, and so does every reader of a layer's input. Without
    ``zero_points``, these are omitted where that is allowed: u8 after a ReLU.
    """
    graph = model.graph
    rectified = {str(n.outputs[0].name) for n in graph if n.op_type in {"Relu", "MaxPool"}}
    for node in list(graph):
        if node.op_type not in WEIGHTED:
            continue
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        axes = tuple(range(1, array.ndim)) if per_channel else None
        scales = np.asarray(np.abs(array).max(axis=axes) / 127, np.float32)
        _pair(graph, node, 1, scales, np.zeros(scales.shape, np.int8), axis=0)
        name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        unsigned = name in rectified and not zero_points
        if activations:
            _pair(graph, node, 0, np.float32(scale), None if unsigned else np.int8(0))
    return model


def _pair(
    graph: ir.Graph, node: ir.Node, index: int, scale: Any, zero: Any, **attributes: int
) -> None:
    stem = f"{node.name}.{index}"
    value = node.inputs[index]
    constants = [_constant(graph, f"{stem}.scale", np.asarray(scale))]
    if zero is not None:
        constants.append(_constant(graph, f"{stem}.zero", np.asarray(zero)))
    quantize = ir.node(
        "QuantizeLinear", [value, *constants], name=f"{stem}.q", attributes=attributes
    )
    dequantize = ir.node(
        "DequantizeLinear",
        [quantize.outputs[0], *constants],
        name=f"{stem}.dq",
        attributes=attributes,
    )
    quantize.outputs[0].name, dequantize.outputs[0].name = f"{stem}.integers", f"{stem}.float"
    graph.insert_before(node, [quantize, dequantize])
    node.replace_input_with(index, dequantize.outputs[0])
