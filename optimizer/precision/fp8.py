"""FP8 graphs (E4M3): Q/DQ pairs around the layers, with scales from calibration statistics.

Placement: the input and the weight of every layer except the stem. The stem reads images with three
channels: it is little work and carries the whole signal. Pooling and Adds stay in high precision
too, because no kernel computes them in FP8.

Scales: the largest absolute value divided by 448. A floating-point type has the same relative error
over its whole range, so clipping, which helps integers, gains nothing here. Weights have one scale
per output channel. Source of the type: Micikevicius et al. 2022, "FP8 Formats for Deep Learning".

Not handled: E5M2, and bias correction (the error of FP8 is relative and has zero mean).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import DataError, GraphError
from optimizer.graphs.metadata import remove_precision_metadata, write_metadata
from optimizer.graphs.topology import WEIGHTED, Topology, analyse
from optimizer.precision.half import to_half
from optimizer.precision.int8.statistics import Statistics
from optimizer.precision.qdq import write_pair, write_weight

__all__ = ["LARGEST", "quantized_layers", "to_fp8"]

LARGEST = 448.0
"""The largest finite E4M3 value."""
_OPSET = 19


def to_fp8(model: ir.Model, statistics: Statistics, *, high_precision: str = "fp16") -> bool:
    """Write FP8 Q/DQ into an FP32 graph, in place.

    Args:
        model: The FP32 graph.
        statistics: Statistics of this graph.
        high_precision: ``fp16`` or ``fp32`` around the FP8 layers.

    Returns:
        True.

    Raises:
        GraphError: `analyse` does not accept the graph, or its opset does not support FP8.
        DataError: The statistics lack a required tensor.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset < _OPSET:
        raise GraphError(
            f"opset {opset} does not support FP8", hint=f"export with --opset {_OPSET} or later"
        )
    topology = analyse(model)
    kind = np.float16 if high_precision == "fp16" else np.float32
    layers = quantized_layers(topology)
    kept = [str(node.name) for node in topology.layers() if node not in layers]
    sources = dict.fromkeys(topology.data_inputs(node)[0] for node in layers)
    for tensor in sources:
        observed = statistics.tensors.get(tensor)
        if observed is None:
            raise DataError(
                f"the statistics do not contain {tensor}", hint="calibrate this graph again"
            )
        scale = scales_for(observed.absolute_maximum.max(keepdims=True), kind)
        readers = [(node, 0) for node in layers if topology.data_inputs(node)[0] == tensor]
        zero = np.zeros((), ml_dtypes.float8_e4m3fn)
        write_pair(model.graph, tensor, scale.reshape(()), zero, readers)
    for node in layers:
        _write_weight(topology, node, kind)
    if high_precision == "fp16":
        try:
            to_half(model, ir.DataType.FLOAT16)
        except GraphError as error:
            raise GraphError(error.message, hint="use --high-precision fp32") from error
    remove_precision_metadata(model)
    write_metadata(model, precision="fp8", keep=kept, target="tensorrt")
    return True


def quantized_layers(topology: Topology) -> list[ir.Node]:
    """The layers that compute in FP8: all that have another weighted layer upstream."""
    after_layer: dict[str, bool] = {}
    for node in topology.nodes.values():  # in graph order: producers come first
        producers = [topology.producer(tensor) for tensor in topology.data_inputs(node)]
        after_layer[str(node.name)] = any(
            p is not None and (p.op_type in WEIGHTED or after_layer[str(p.name)]) for p in producers
        )
    return [node for node in topology.layers() if after_layer[str(node.name)]]


def scales_for(largest: NDArray[np.floating], kind: type[np.floating]) -> NDArray[np.float32]:
    """Scales that map the largest values to 448, as the graph will store them.

    Args:
        largest: Largest absolute values; zero gives a scale of one.
        kind: The type in which the graph stores the scales. They are rounded up to it, so that
            nothing saturates.
    """
    wide = largest.astype(np.float64)
    exact = np.where(wide > 0, wide / LARGEST, 1.0)
    stored = np.maximum(exact.astype(kind), np.finfo(kind).smallest_subnormal)
    low = stored.astype(np.float64) < exact
    stored[low] = np.nextafter(stored[low], kind(np.inf))
    return np.asarray(stored, np.float32)


def _write_weight(topology: Topology, node: ir.Node, kind: type[np.floating]) -> None:
    graph = topology.model.graph
    weight = topology.weight(node)
    scale = scales_for(np.abs(weight.reshape(len(weight), -1)).max(axis=1), kind)
    values = weight / scale.reshape(-1, *([1] * (weight.ndim - 1)))
    stored = np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    write_weight(graph, node, stored, scale)
