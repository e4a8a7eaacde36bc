"""Undo what lowering does in addition to Q/DQ pairs: half types, absorbed ReLUs, the shift.

Each function undoes one of these in place, so that the result is an FP32 graph that `analyse`
accepts. What `lower` did is recorded in the graph's metadata (`Metadata.absorbed`,
`Metadata.shifted`).

Not handled: Casts other than between floating-point types (uint8 inputs are left unchanged), and
shifted graphs whose tensors another tool has renamed; these are rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import GraphError
from optimizer.graphs.editing import bypass, describe, fresh_name, insert_after
from optimizer.graphs.metadata import Metadata
from optimizer.graphs.topology import Topology
from optimizer.precision.int8.shift import compensating_layer, producers_of

__all__ = ["insert_relu", "restore_relus", "shifted_tensors", "unshift", "widen"]

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_INTEGERS = frozenset({ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64})
_TYPE_PRESERVING = frozenset({"Transpose", "Identity", "Reshape"})


def widen(model: ir.Model) -> bool:
    """Convert FP16 and BF16 constants and operations to float32 and remove Casts between them.

    Returns:
        Whether there were any.

    Raises:
        GraphError: An input or output of the graph has a half type.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in _HALF:
            raise GraphError(
                f"{value.name} is {value.dtype}, but inputs and outputs must be float32",
                hint="convert it with float32 inputs and outputs (keep_io_types)",
            )
    changed = False
    for name, value in graph.initializers.items():
        if value.dtype in _HALF and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=name)
            value.dtype = ir.DataType.FLOAT
            changed = True
    for node in list(graph):
        if node.op_type == "Cast" and _to_float(node):
            changed = True
            source = node.inputs[0]
            assert source is not None
            if _is_integer(source):
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            else:
                bypass(graph, node)
                continue
        for value in node.outputs:
            if value.dtype in _HALF:
                value.dtype = ir.DataType.FLOAT
    return changed


def _to_float(cast: ir.Node) -> bool:
    kind = ir.DataType(cast.attributes.get_int("to", 0) or 0)
    return kind in _HALF or kind == ir.DataType.FLOAT


def _is_integer(value: ir.Value) -> bool:
    """Whether a value has an integer type: uint8 pixels, possibly transposed."""
    producer = value.producer()
    if value.dtype is None and producer is not None and producer.op_type in _TYPE_PRESERVING:
        source = producer.inputs[0]
        return source is not None and _is_integer(source)
    return value.dtype in _INTEGERS


# --- ReLUs -------------------------------------------------------------------------------------


def insert_relu(graph: ir.Graph, source: ir.Value, name: str) -> ir.Value:
    """Insert a ReLU after a tensor, without readers; ``name`` names the node and its output."""
    taken = {str(n.name) for n in graph}
    relu = ir.node("Relu", [source], name=fresh_name(name, taken, ".restored"))
    describe(relu.outputs[0], name, source.shape, ir.DataType.FLOAT)
    insert_after(graph, source, relu)
    return relu.outputs[0]


def restore_relus(model: ir.Model) -> None:
    """Restore the ReLUs that this project's lowering absorbed, from the graph's metadata.

    If another tool has renamed the tensor since, the rule for third-party graphs applies instead: a
    zero point equal to the smallest integer means a ReLU.
    """
    values = {str(v.name): v for n in model.graph for v in n.outputs}
    values |= {str(v.name): v for v in model.graph.inputs}
    for name, source in Metadata.of_model(model).absorbed.items():
        value = values.get(source)
        if value is None or name in values:
            continue
        uses = list(value.uses())
        relu = insert_relu(model.graph, value, name)
        for use in uses:
            use.node.replace_input_with(use.idx, relu)


# --- the shift ---------------------------------------------------------------------------------


def shifted_tensors(model: ir.Model) -> list[str]:
    """Names of the tensors that this project's lowering shifted.

    Raises:
        GraphError: A graph for TensorRT from a version that did not record them.
    """
    metadata = Metadata.of_model(model)
    if metadata.shifted is None and metadata.target.startswith("tensorrt"):
        raise GraphError(
            "the graph was written by an earlier version that did not record which tensors it "
            "shifted, so the shift cannot be removed from its biases",
            hint="quantize the original FP32 graph again (resnet-opt quantize)",
        )
    return metadata.shifted or []


def unshift(
    topology: Topology,
    shifted: Sequence[str],
    scales: Mapping[str, float],
    weight_sums: Mapping[str, NDArray[np.float64]],
) -> None:
    """Remove the constants of shifted tensors from the biases, in place.

    Args:
        topology: The FP32 graph, with its ReLUs restored.
        shifted: Names of the shifted tensors.
        scales: Their scales, by name.
        weight_sums: Sums of the dequantized weights, float64[O] by layer name.

    Raises:
        GraphError: The graph around a shifted tensor was changed after `lower`.
    """
    biases = {str(node.name): topology.bias(node).astype(np.float64) for node in topology.layers()}
    for tensor in shifted:
        present = tensor in scales and topology.has(tensor)
        producers = producers_of(topology, tensor) if present else None
        if producers is None:
            raise _changed(tensor)
        offset = 128.0 * scales[tensor]
        biases[str(producers.layer.name)] += offset
        for edge in topology.consumers(tensor):
            node = topology.nodes[edge.node]
            layer = compensating_layer(topology, edge) if topology.is_add(node) else None
            if layer is not None:
                biases[str(layer.name)] -= offset
            elif edge.node in weight_sums:
                biases[edge.node] -= offset * weight_sums[edge.node]
            else:
                raise _changed(tensor)
    for name, bias in biases.items():
        value = topology.nodes[name].inputs[2] if len(topology.nodes[name].inputs) > 2 else None
        if value is not None:
            value.const_value = ir.tensor(bias.astype(np.float32), name=value.name)


def _changed(tensor: str) -> GraphError:
    return GraphError(
        f"{tensor} is shifted, and the graph around it was changed after resnet-opt wrote it",
        hint="quantize the original FP32 graph again (resnet-opt quantize)",
    )
