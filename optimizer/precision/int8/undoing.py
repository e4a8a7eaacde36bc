"""Undoing what a lowering does beside its Q/DQ pairs: half types, absorbed ReLUs, the shift.

Each function takes one of them back, in place, so that an FP32 graph is left that `analyse` takes.
What `lower` did is read from the graph's metadata (`Metadata.absorbed`, `Metadata.shifted`).

Not handled: Casts between other types than the floating-point ones (pixels are left as they are),
and shifted graphs that other tools have renamed since; they are refused.
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
from optimizer.precision.int8.shift import entry_of, partner_of

__all__ = ["insert_relu", "restore_relus", "shifted_tensors", "unshift", "widen"]

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_INTEGERS = frozenset({ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64})
_MOVES = frozenset({"Transpose", "Identity", "Reshape"})


def widen(model: ir.Model) -> bool:
    """Turn FP16 and BF16 constants and operations into float32 and drop Casts between them.

    Returns:
        Whether there were any.

    Raises:
        GraphError: The graph's input or output itself is of a half type.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in _HALF:
            raise GraphError(
                f"{value.name} is {value.dtype}, a graph here takes and gives float32",
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
            if _is_whole(source):
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


def _is_whole(value: ir.Value) -> bool:
    """Whether a value is known to hold integers: pixels, maybe in another order."""
    producer = value.producer()
    if value.dtype is None and producer is not None and producer.op_type in _MOVES:
        source = producer.inputs[0]
        return source is not None and _is_whole(source)
    return value.dtype in _INTEGERS


# --- ReLUs -------------------------------------------------------------------------------------


def insert_relu(graph: ir.Graph, source: ir.Value, name: str) -> ir.Value:
    """A ReLU after a tensor, read by nobody yet; ``name`` is its name and its output's."""
    taken = {str(n.name) for n in graph}
    relu = ir.node("Relu", [source], name=fresh_name(name, taken, ".restored"))
    describe(relu.outputs[0], name, source.shape, ir.DataType.FLOAT)
    insert_after(graph, source, relu)
    return relu.outputs[0]


def restore_relus(model: ir.Model) -> None:
    """Put back the ReLUs that this project's lowering took out, by the graph's metadata.

    Where another tool has renamed a tensor since, its ReLU is left to the rule for all graphs: a
    zero point at the smallest integer is a ReLU.
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
    """Tensors that this project's lowering has shifted.

    Raises:
        GraphError: A graph for TensorRT, written before graphs said so.
    """
    metadata = Metadata.of_model(model)
    if metadata.shifted is None and metadata.target.startswith("tensorrt"):
        raise GraphError(
            "the graph was lowered for TensorRT by a version that did not write down which "
            "tensors it shifted, so the constants in its biases cannot be told from the biases",
            hint="resnet-opt quantize the FP32 graph it was made from",
        )
    return metadata.shifted or []


def unshift(
    topology: Topology,
    shifted: Sequence[str],
    scales: Mapping[str, float],
    weight_sums: Mapping[str, NDArray[np.float64]],
) -> None:
    """Give the constants of shifted tensors back to the biases, in place.

    Args:
        topology: The FP32 graph, its ReLUs restored.
        shifted: Names of the shifted tensors.
        scales: Their scales.
        weight_sums: Sum of the represented weights of each layer, float64[O] by its name.

    Raises:
        GraphError: The graph around a shifted tensor is not as `lower` left it.
    """
    biases = {str(node.name): topology.bias(node).astype(np.float64) for node in topology.layers()}
    for tensor in shifted:
        known = tensor in scales and topology.has(tensor)
        entry = entry_of(topology, tensor) if known else None
        if entry is None:
            raise _changed(tensor)
        offset = 128.0 * scales[tensor]
        biases[str(entry.layer.name)] += offset
        for edge in topology.consumers(tensor):
            node = topology.nodes[edge.node]
            partner = partner_of(topology, edge) if topology.is_add(node) else None
            if partner is not None:
                biases[str(partner.name)] -= offset
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
        f"{tensor} is shifted (zero point 0, its middle in the biases), and the graph around it "
        "was changed since resnet-opt wrote it",
        hint="resnet-opt quantize the FP32 graph it was made from",
    )
