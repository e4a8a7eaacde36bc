"""The shift: use all 256 levels for a tensor after a ReLU, with zero point 0.

TensorRT accepts signed activations with zero point 0 only, so half of the levels are unused after a
ReLU. Stored as ``x - 128 * scale`` instead, a tensor x in [0, 255 * scale] uses all levels:
saturation at -128 *is* the ReLU, 128 * scale is subtracted from the producer's bias, and every
consumer adds 128 * scale * sum(w) to its bias. This is exact, except where a consumer pads: its zero
padding would have to be -128.

The same applies to max pooling with padding (a ResNet's stem). ONNX pads it with minus infinity.
After a ReLU, zero padding is equivalent; but shifted values are centred on zero, where a kernel that
pads with zeros replaces every negative maximum at the border. It is not documented which kernels do,
and TensorRT's fusion of convolution, ReLU and pooling needs the ReLU. So the stem is not shifted.

Rules: a *bare layer* is a weighted layer whose output has a single consumer. A tensor is shifted if
it is the output of a ReLU (possibly followed by max pooling without padding); the input of that ReLU
is a bare layer, or the Add of a bare layer and a residual, with no other consumer; and every consumer
of the tensor is quantized and is a layer without padding, or an Add.
Not handled: networks whose residual stream feeds padded convolutions (ResNet-18/34); their stream
keeps 128 levels.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from optimizer.graphs.topology import WEIGHTED, Edge, Topology
from optimizer.targets.rules import TargetRules

__all__ = ["Producers", "compensating_layer", "producers_of", "shiftable"]


class Producers:
    """The nodes that produce a shiftable tensor.

    Attributes:
        relu: The ReLU that saturation replaces.
        layer: The weighted layer from whose bias the constant is subtracted.
        residual: The other input of the Add between them; ``None`` without an Add.
    """

    def __init__(self, relu: ir.Node, layer: ir.Node, residual: str | None) -> None:
        self.relu = relu
        self.layer = layer
        self.residual = residual


def producers_of(topology: Topology, tensor: str) -> Producers | None:
    """Trace a tensor back to the layer that produces it; ``None`` if the rules do not hold."""
    node = topology.producer(tensor)
    while node is not None and node.op_type == "MaxPool" and not topology.has_padding(node):
        tensor = topology.data_inputs(node)[0]
        if len(topology.consumers(tensor)) != 1:
            return None
        node = topology.producer(tensor)
    if node is None or node.op_type != "Relu":
        return None
    source = topology.data_inputs(node)[0]
    before = topology.producer(source)
    if before is None or len(topology.consumers(source)) != 1:
        return None
    if before.op_type in WEIGHTED:
        return Producers(node, before, None)
    if not topology.is_add(before):
        return None
    return _through_add(topology, node, before)


def _through_add(topology: Topology, relu: ir.Node, add: ir.Node) -> Producers | None:
    first, second = topology.data_inputs(add)
    bare = [_bare_layer(topology, first), _bare_layer(topology, second)]
    if bare[0] is not None and (bare[1] is None or topology.depth(first) >= topology.depth(second)):
        return Producers(relu, bare[0], second)
    if bare[1] is not None:
        return Producers(relu, bare[1], first)
    return None


def _bare_layer(topology: Topology, tensor: str) -> ir.Node | None:
    node = topology.producer(tensor)
    if node is None or node.op_type not in WEIGHTED or len(topology.consumers(tensor)) != 1:
        return None
    return node


def shiftable(topology: Topology, rules: TargetRules, keep: Collection[str] = ()) -> set[str]:
    """Tensors that may be shifted under a target's rules; no kept layer reads any of them."""
    quantized = topology.quantized_edges(rules, keep)
    places = {(edge.tensor, edge.node, edge.index) for edge in quantized}
    tensors = set()
    for tensor in {edge.tensor for edge in quantized}:
        if producers_of(topology, tensor) is None:
            continue
        uses = topology.consumers(tensor)
        if all((tensor, e.node, e.index) in places and _accepts(topology, e) for e in uses):
            tensors.add(tensor)
    return tensors


def _accepts(topology: Topology, edge: Edge) -> bool:
    """Whether the reader of an edge can compensate for the constant of a shifted tensor."""
    node = topology.nodes[edge.node]
    if node.op_type in WEIGHTED:
        return not topology.has_padding(node)
    return topology.is_add(node) and compensating_layer(topology, edge) is not None


def compensating_layer(topology: Topology, edge: Edge) -> ir.Node | None:
    """The bare layer at the other input of an Add; its bias can compensate for a constant."""
    other = topology.data_inputs(topology.nodes[edge.node])[1 - edge.index]
    return _bare_layer(topology, other)
