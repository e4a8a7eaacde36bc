"""FP8 graphs (E4M3): Q/DQ pairs around the layers, with scales from calibration statistics.

Placement: the input and the weight of every layer but the stem. The stem reads images of three
channels, which is little work and the whole of the signal; pooling and Adds stay high too, since no
kernel computes them in FP8.

Scales: the largest absolute value over 448. A floating type has the same relative error over its
whole range, so clipping, which pays for integers, buys nothing here; weights have a scale per output
channel. Source of the type: Micikevicius et al. 2022, "FP8 Formats for Deep Learning".

Not handled: E5M2, and correction of the biases (the error of FP8 is relative and has no mean).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import DataError, GraphError
from optimizer.graphs.metadata import forget_precision, write_metadata
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
        GraphError: The graph is not what `analyse` takes, or its operator set knows no FP8.
        DataError: The statistics lack a tensor that is needed.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset < _OPSET:
        raise GraphError(
            f"operator set {opset} knows no FP8", hint=f"export it with --opset {_OPSET} or later"
        )
    topology = analyse(model)
    kind = np.float16 if high_precision == "fp16" else np.float32
    layers = quantized_layers(topology)
    kept = [str(node.name) for node in topology.layers() if node not in layers]
    sources = dict.fromkeys(topology.data_inputs(node)[0] for node in layers)
    for tensor in sources:
        seen = statistics.tensors.get(tensor)
        if seen is None:
            raise DataError(
                f"the statistics know nothing of {tensor}", hint="calibrate this graph again"
            )
        scale = scales_for(seen.absolute_maximum.max(keepdims=True), kind)
        users = [(node, 0) for node in layers if topology.data_inputs(node)[0] == tensor]
        zero = np.zeros((), ml_dtypes.float8_e4m3fn)
        write_pair(model.graph, tensor, scale.reshape(()), zero, users)
    for node in layers:
        _write_weight(topology, node, kind)
    if high_precision == "fp16":
        to_half(model, ir.DataType.FLOAT16)
    forget_precision(model)
    write_metadata(model, precision="fp8", keep=kept, target="tensorrt")
    return True


def quantized_layers(topology: Topology) -> list[ir.Node]:
    """The layers that compute in FP8: all that come after another one."""
    known: dict[str, bool] = {}
    for node in topology.nodes.values():  # in graph order, so inputs are known
        producers = [topology.producer(tensor) for tensor in topology.data_inputs(node)]
        known[str(node.name)] = any(
            p is not None and (p.op_type in WEIGHTED or known[str(p.name)]) for p in producers
        )
    return [node for node in topology.layers() if known[str(node.name)]]


def scales_for(largest: NDArray[np.floating], kind: type[np.floating]) -> NDArray[np.float32]:
    """Scales at which the largest values become 448, as the graph will hold them.

    Args:
        largest: Largest absolute values; zero gives a scale of one.
        kind: The type that the graph stores them in; they are rounded up to it, so that nothing
            saturates.
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
