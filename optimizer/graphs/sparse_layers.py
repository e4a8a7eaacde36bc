"""Which layers of a graph have weights in the 2:4 pattern of sparse kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.facts import layer_flops
from optimizer.graphs.importing import load_graph
from optimizer.targets.structured_sparsity import has_pattern

__all__ = ["SparseLayers", "sparse_layers"]


@dataclass(frozen=True)
class SparseLayers:
    """The layers with the pattern.

    Attributes:
        names: In graph order.
        layers: Number of all layers with weights.
        flop_share: Their share of the FLOPs of these, a fraction of one.
    """

    names: tuple[str, ...]
    layers: int
    flop_share: float


def sparse_layers(path: Path) -> SparseLayers:
    """Find the layers with the pattern in a graph of any precision.

    Args:
        path: An ONNX file; weights may be behind a DequantizeLinear or a Cast.

    Raises:
        GraphError: The file cannot be read.
    """
    model = load_graph(path)
    flops = layer_flops(path)
    names, layers = [], 0
    for node in model.graph:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        layers += 1
        weight = _weight(node)
        grouped = int(node.attributes.get_int("group", 1) or 1) != 1
        if weight is None or grouped:
            continue
        if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
            weight = weight.T
        if has_pattern(weight):
            names.append(str(node.name))
    total = sum(flops.values())
    share = sum(flops.get(name, 0) for name in names) / total if total else 0.0
    return SparseLayers(tuple(names), layers, share)


def _weight(node: ir.Node) -> NDArray[Any] | None:
    """The stored weight of a layer, as floats or integers; ``None`` if it is computed."""
    value = node.inputs[1]
    while value is not None and value.const_value is None:
        producer = value.producer()
        if producer is None or producer.op_type not in {"DequantizeLinear", "Cast"}:
            return None
        value = producer.inputs[0]
    return None if value is None or value.const_value is None else value.const_value.numpy()
