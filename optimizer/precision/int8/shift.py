"""The shift: all 256 levels for a tensor after a ReLU, with zero point 0.

TensorRT takes signed activations with zero point 0 only, which leaves half of the levels unused
after a ReLU. Stored as ``x - 128 * scale`` instead, a tensor x in [0, 255 * scale] uses all of them:
saturation at -128 *is* the ReLU, the producers' biases give 128 * scale away, and every consumer
adds 128 * scale * sum(w) to its bias. Exact, except where a consumer pads: a border of zeros
would have to be a border of -128.

That holds for max pooling that pads, too (a ResNet's stem). ONNX pads it with minus infinity, and after
a ReLU zeros do as well; but shifted values lie around zero, where a kernel that pads with zeros
replaces every negative maximum at the border. Nothing says which kernels do, and the fusion of
convolution, ReLU and pooling that TensorRT has needs the ReLU. So the stem is not shifted.

Rules: a tensor is shifted if a ReLU makes it (with max pooling without padding between at most), that
ReLU's input is one bare layer or the Add of a bare layer and a residual, all with one consumer each,
and every consumer of the tensor is quantized and a layer that does not pad, or an Add.
Not handled: networks whose residual stream feeds padded convolutions (ResNet-18/34); their stream
keeps 128 levels.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from optimizer.graphs.topology import WEIGHTED, Edge, Topology
from optimizer.targets.rules import TargetRules

__all__ = ["Entry", "entry_of", "partner_of", "shiftable"]


class Entry:
    """How a shiftable tensor comes to be.

    Attributes:
        relu: The ReLU that the saturation replaces.
        layer: The weighted layer whose bias gives the constant away.
        residual: The other input of the Add between them; ``None`` without an Add.
    """

    def __init__(self, relu: ir.Node, layer: ir.Node, residual: str | None) -> None:
        self.relu = relu
        self.layer = layer
        self.residual = residual


def entry_of(topology: Topology, tensor: str) -> Entry | None:
    """Follow a tensor back to the layer that makes it; ``None`` if the rules do not hold."""
    node = topology.producer(tensor)
    while node is not None and node.op_type == "MaxPool" and not topology.pads(node):
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
        return Entry(node, before, None)
    if not topology.is_add(before):
        return None
    return _through_add(topology, node, before)


def _through_add(topology: Topology, relu: ir.Node, add: ir.Node) -> Entry | None:
    first, second = topology.data_inputs(add)
    bare = [_bare_layer(topology, first), _bare_layer(topology, second)]
    if bare[0] is not None and (bare[1] is None or topology.depth(first) >= topology.depth(second)):
        return Entry(relu, bare[0], second)
    if bare[1] is not None:
        return Entry(relu, bare[1], first)
    return None


def _bare_layer(topology: Topology, tensor: str) -> ir.Node | None:
    node = topology.producer(tensor)
    if node is None or node.op_type not in WEIGHTED or len(topology.consumers(tensor)) != 1:
        return None
    return node


def shiftable(topology: Topology, rules: TargetRules, keep: Collection[str] = ()) -> set[str]:
    """Tensors that may be shifted under a target's rules; no kept layer reads one of them."""
    quantized = topology.quantized_edges(rules, keep)
    places = {(edge.tensor, edge.node, edge.index) for edge in quantized}
    found = set()
    for tensor in {edge.tensor for edge in quantized}:
        if entry_of(topology, tensor) is None:
            continue
        uses = topology.consumers(tensor)
        if all((tensor, e.node, e.index) in places and _takes(topology, e) for e in uses):
            found.add(tensor)
    return found


def _takes(topology: Topology, edge: Edge) -> bool:
    node = topology.nodes[edge.node]
    if node.op_type in WEIGHTED:
        return not topology.pads(node)
    return topology.is_add(node) and partner_of(topology, edge) is not None


def partner_of(topology: Topology, edge: Edge) -> ir.Node | None:
    """The bare layer at the other input of an Add: its bias makes up for a constant."""
    other = topology.data_inputs(topology.nodes[edge.node])[1 - edge.index]
    return _bare_layer(topology, other)
