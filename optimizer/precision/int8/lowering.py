"""Lowering: write encodings into the graph as explicit Q/DQ.

``requires`` the FP32 graph that the encodings were computed for; ``ensures`` a graph in which INT8 is
expressed only by QuantizeLinear / DequantizeLinear: one pair per quantized tensor
(``relu.quantize``, ``relu.dequantize``), one DequantizeLinear with INT8 constants per weight
(``conv1.weight.dequantize``), and biases in the high-precision type. Where the rules require it, the
bias of a fully connected layer is an INT32 constant behind a DequantizeLinear, in units of its
products (input scale times weight scale). Kept layers have weights in the high-precision type, and
no pair at their inputs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import ArtifactError, GraphError
from optimizer.graphs.editing import bypass
from optimizer.graphs.metadata import remove_precision_metadata, write_metadata
from optimizer.graphs.operator_sets import FP16_SCALES, raise_opset
from optimizer.graphs.shared_strides import share_strides
from optimizer.graphs.topology import Edge, Topology, analyse
from optimizer.precision.half import to_half
from optimizer.precision.int8.encodings import LARGEST_BIAS, Encodings, TensorEncoding
from optimizer.precision.int8.shift import compensating_layer, producers_of, shiftable
from optimizer.precision.qdq import (
    replace_bias,
    write_bias,
    write_float_layer,
    write_pair,
    write_weight,
)
from optimizer.targets.rules import TargetRules

__all__ = ["lower"]

_INTEGERS = {"s8": np.int8, "u8": np.uint8}


def lower(model: ir.Model, encodings: Encodings, rules: TargetRules) -> bool:
    """Write encodings into an FP32 graph, in place.

    Args:
        model: The FP32 graph.
        encodings: Encodings of this graph for this target.
        rules: The target's rules.

    Returns:
        True.

    Raises:
        GraphError: `analyse` does not accept the graph, a bias exceeds its type, or the operator set
            is too old for FP16 scales and cannot be raised.
        UsageError: The encodings keep a layer that the graph does not have.
        ArtifactError: The encodings were edited so that a kept layer reads a shifted tensor.
    """
    topology = analyse(model)
    keep = topology.check_layers(encodings.keep)
    edges = topology.quantized_edges(rules, keep)
    _check_shifted(topology, encodings, rules)
    biases = _biases(topology, encodings, edges)
    for name, bias in biases.items():
        if not np.abs(bias).max(initial=0.0) <= np.finfo(np.float32).max:
            raise GraphError(
                f"a bias of {name} exceeds float32 with the constants of shifted tensors",
                hint="check the scales and biases in the encodings",
            )
    absorbed = _absorbed(topology, encodings, edges, rules)
    if rules.constant_type == "fp16":
        biases = {name: _rounded_to_fp16(name, bias) for name, bias in biases.items()}
    for node in list(topology.layers()):
        if node.name in keep:
            _write_exact(topology, node, encodings, biases[str(node.name)], rules)
        else:
            _write_layer(topology, node, encodings, biases[str(node.name)], rules)
    for tensor in dict.fromkeys(edge.tensor for edge in edges):
        places = [edge for edge in edges if edge.tensor == tensor]
        _write_pair(topology, tensor, encodings.tensors[tensor], places)
    # Recorded so that `read_quantized` can restore them.
    absorbed_inputs = {
        str(r.outputs[0].name): str(r.inputs[0].name) for r in absorbed if r.inputs[0]
    }
    shifted = [name for name, encoding in encodings.tensors.items() if encoding.shifted]
    for relu in absorbed:
        bypass(model.graph, relu)
    if rules.shared_strides:
        share_strides(model)
    if rules.high_precision == "fp16":
        raise_opset(model, FP16_SCALES)
        to_half(model, ir.DataType.FLOAT16)
    with_kept = "mixed" if edges else rules.high_precision
    remove_precision_metadata(model)
    write_metadata(
        model,
        precision=with_kept if keep else "int8",
        target=rules.name,
        keep=keep or None,
        absorbed=absorbed_inputs,
        shifted=shifted,
    )
    return True


def _rounded_to_fp16(name: str, bias: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        half = bias.astype(np.float16).astype(np.float64)
    if not np.isfinite(half).all():
        raise GraphError(
            f"a bias of {name} is {np.abs(bias).max():,.0f}, which exceeds FP16",
            hint="use --high-precision fp32",
        )
    return half


def _check_shifted(topology: Topology, encodings: Encodings, rules: TargetRules) -> None:
    allowed = shiftable(topology, rules, encodings.keep)
    for name, tensor in encodings.tensors.items():
        if tensor.shifted and name not in allowed:
            raise ArtifactError(
                f"{name} is shifted, but not every layer that reads it is quantized",
                hint='set "shifted": false for it and double its scale, '
                "or compute the encodings with --keep",
            )


def _biases(
    topology: Topology, encodings: Encodings, edges: list[Edge]
) -> dict[str, NDArray[np.float64]]:
    """Corrected biases, with the constants of shifted tensors added at consumers, subtracted at producers."""
    biases = {name: np.asarray(layer.bias, np.float64) for name, layer in encodings.layers.items()}
    for edge in edges:
        offset = encodings.tensors[edge.tensor].offset
        if offset == 0.0:
            continue
        node = topology.nodes[edge.node]
        if topology.is_add(node):
            layer = compensating_layer(topology, edge)
            assert layer is not None, "only shiftable tensors are shifted"
            biases[str(layer.name)] = biases[str(layer.name)] + offset
        else:
            biases[edge.node] = biases[edge.node] + offset * _weight_sums(topology, node, encodings)
    for tensor, encoding in encodings.tensors.items():
        if encoding.shifted:
            producers = producers_of(topology, tensor)
            assert producers is not None, "only shiftable tensors are shifted"
            name = str(producers.layer.name)
            biases[name] = biases[name] - encoding.offset
    return biases


def _weight_sums(topology: Topology, node: ir.Node, encodings: Encodings) -> NDArray[np.float64]:
    layer = encodings.layers[str(node.name)]
    integers = layer.integers(topology.weight(node))
    sums = integers.reshape(len(integers), -1).sum(axis=1, dtype=np.int64)
    return np.asarray(sums * np.asarray(layer.weight_scale, np.float64))


def _absorbed(
    topology: Topology, encodings: Encodings, edges: list[Edge], rules: TargetRules
) -> list[ir.Node]:
    """ReLUs that the saturation of a QuantizeLinear replaces."""
    relus = {}
    places = {(e.tensor, e.node, e.index) for e in edges}
    for tensor, encoding in encodings.tensors.items():
        if encoding.shifted:
            producers = producers_of(topology, tensor)
            assert producers is not None
            relus[str(producers.relu.name)] = producers.relu
            continue
        producer = topology.producer(tensor)
        if not rules.absorb_relu or encoding.dtype != "u8" or encoding.zero_point != 0:
            continue
        all_quantized = all((tensor, e.node, e.index) in places for e in topology.consumers(tensor))
        if producer is not None and producer.op_type == "Relu" and all_quantized:
            relus[str(producer.name)] = producer
    return list(relus.values())


def _write_layer(
    topology: Topology,
    node: ir.Node,
    encodings: Encodings,
    bias: NDArray[np.float64],
    rules: TargetRules,
) -> None:
    graph = topology.model.graph
    layer = encodings.layers[str(node.name)]
    integers = layer.integers(topology.weight(node))
    source = encodings.tensors[topology.data_inputs(node)[0]]
    scale = np.asarray(layer.weight_scale, np.float32)
    write_weight(graph, node, integers, scale)
    replace_bias(graph, node, bias)
    if rules.bias == "int32" and node.op_type == "Gemm":
        products = np.float32(source.scale) * scale
        stored = np.rint(bias / products.astype(np.float64))
        if (
            np.abs(stored).max(initial=0.0) <= LARGEST_BIAS
        ):  # edited or third-party scales may be too small
            write_bias(graph, node, stored.astype(np.int32), products)


def _write_exact(
    topology: Topology,
    node: ir.Node,
    encodings: Encodings,
    bias: NDArray[np.float64],
    rules: TargetRules,
) -> None:
    """Write the equalized weight of a kept layer, rounded to FP16 if the target stores constants so."""
    graph = topology.model.graph
    weight = encodings.layers[str(node.name)].equalized(topology.weight(node))
    if rules.constant_type == "fp16":
        weight = weight.astype(np.float16).astype(np.float32)
    write_float_layer(graph, node, weight, bias)


def _write_pair(
    topology: Topology, tensor: str, encoding: TensorEncoding, places: list[Edge]
) -> None:
    write_pair(
        topology.model.graph,
        tensor,
        np.asarray(encoding.scale, np.float32),
        np.asarray(encoding.zero_point, _INTEGERS[encoding.dtype]),
        [(topology.nodes[place.node], place.index) for place in places],
    )
