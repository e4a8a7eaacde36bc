"""The shape of a residual network as quantizers see it: layers, streams, places to quantize.

Works on the exported form: ``Conv``, ``Gemm``, ``Relu``, ``Add``, ``MaxPool``,
``GlobalAveragePool`` and ``Flatten``, BatchNorm folded, constant weights. Anything else is left in
high precision and ends what can be reasoned about around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import GraphError
from optimizer.targets.rules import TargetRules

__all__ = ["ChannelGroup", "Edge", "Topology", "analyse"]

WEIGHTED = frozenset({"Conv", "Gemm"})
HOMOGENEOUS = frozenset({"Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten"})
"""Operations that commute with a positive factor per channel."""


@dataclass(frozen=True)
class Edge:
    """A tensor as the input number ``index`` of a node."""

    tensor: str
    node: str
    index: int


@dataclass
class ChannelGroup:
    """Tensors that share one channel axis, with the layers that write and read it.

    A group is what may be scaled by one positive factor per channel: the residual stream of a
    stage is one group, the tensor between two convolutions of a block another.
    """

    tensors: list[str]
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    closed: bool = True
    """False if anything but weighted layers writes to it or reads it (the graph's input, say)."""


class Topology:
    """A read-only view of a graph; tensors and nodes are named as in the graph."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes: dict[str, ir.Node] = {str(n.name): n for n in model.graph}
        if len(self.nodes) != len(model.graph):
            raise GraphError("nodes without a name, or with the same name twice")
        self.input = str(model.graph.inputs[0].name)
        self.output = str(model.graph.outputs[0].name)
        self._producer = {str(v.name): n for n in model.graph for v in n.outputs}
        self._constants = set(model.graph.initializers)
        self._depth = self._depths()

    # --- looking up ------------------------------------------------------------------------------

    def producer(self, tensor: str) -> ir.Node | None:
        """The node that computes a tensor; ``None`` for the graph's input."""
        return self._producer.get(tensor)

    def has(self, tensor: str) -> bool:
        """Whether a tensor of this name is computed, or is the input."""
        return tensor in self._producer or tensor == self.input

    def consumers(self, tensor: str) -> list[Edge]:
        """Where a tensor goes."""
        producer = self._producer.get(tensor)
        value = (
            next(v for v in producer.outputs if v.name == tensor)
            if producer is not None
            else next(v for v in self.model.graph.inputs if v.name == tensor)
        )
        return [Edge(tensor, str(use.node.name), use.idx) for use in value.uses()]

    def data_inputs(self, node: ir.Node) -> list[str]:
        """Inputs that are computed, not constant."""
        count = 1 if node.op_type in WEIGHTED else len(node.inputs)
        names = [str(v.name) for v in node.inputs[:count] if v is not None]
        return [name for name in names if name not in self._constants]

    def is_add(self, node: ir.Node) -> bool:
        """Whether this is an Add of two computed tensors (and not of a constant)."""
        return node.op_type == "Add" and len(self.data_inputs(node)) == 2

    def layers(self) -> Iterator[ir.Node]:
        """Weighted layers in graph order.

        Raises:
            GraphError: A weight is no constant, or two layers share one.
        """
        owners: dict[str, str] = {}
        for node in self.nodes.values():
            if node.op_type not in WEIGHTED:
                continue
            weight = str(node.inputs[1].name) if node.inputs[1] is not None else ""
            if weight not in self._constants:
                raise GraphError(
                    f"the weight of {node.name} is computed in the graph",
                    mend="export with resnet-opt export, or fold constants first",
                )
            if weight in owners:
                raise GraphError(
                    f"{node.name} and {owners[weight]} share the weight {weight}",
                    mend="give each layer a copy: one scale and one bias cannot serve both",
                )
            owners[weight] = str(node.name)
            yield node

    def weight(self, node: ir.Node) -> NDArray[np.float32]:
        """Weights with the output channel first: O x I x kH x kW, or O x I for Gemm."""
        array = self._constant(node, 1)
        if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
            array = array.T
        return array.astype(np.float32)

    def bias(self, node: ir.Node) -> NDArray[np.float32]:
        """Bias per output channel, zeros where there is none."""
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return np.zeros(len(self.weight(node)), np.float32)
        return self._constant(node, 2).astype(np.float32)

    def _constant(self, node: ir.Node, index: int) -> NDArray[np.float32]:
        value = node.inputs[index]
        assert value is not None
        if value.const_value is None:
            raise GraphError(f"{value.name} of {node.name} is no constant")
        return value.const_value.numpy()

    def pads(self, node: ir.Node) -> bool:
        """Whether a convolution adds zeros around its input."""
        automatic = node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
        return node.op_type == "Conv" and (
            automatic or any(node.attributes.get_ints("pads", ()) or ())
        )

    def groups_of(self, node: ir.Node) -> int:
        """The ``group`` of a convolution."""
        return int(node.attributes.get_int("group", 1) or 1)

    def _depths(self) -> dict[str, int]:
        depth = {str(v.name): 0 for v in self.model.graph.inputs}
        for node in self.model.graph:
            deepest = max((depth.get(t, 0) for t in self.data_inputs(node)), default=0)
            for value in node.outputs:
                depth[str(value.name)] = deepest + 1
        return depth

    def depth(self, tensor: str) -> int:
        """Number of nodes on the longest path from the input."""
        return self._depth[tensor]

    # --- what can be quantized ------------------------------------------------------------------------

    def after_relu(self, tensor: str) -> bool:
        """Whether a tensor is known to be non-negative: a ReLU made it, maybe pooled since."""
        producer = self.producer(tensor)
        while producer is not None and producer.op_type in {
            "MaxPool",
            "GlobalAveragePool",
            "Flatten",
        }:
            producer = self.producer(self.data_inputs(producer)[0])
        return producer is not None and producer.op_type == "Relu"

    def observed(self) -> list[str]:
        """Tensors whose statistics any target may need, in graph order."""
        wanted: list[str] = []
        for name in [self.input, *self._producer]:
            uses = self.consumers(name)
            only_relu = bool(uses) and all(self.nodes[e.node].op_type == "Relu" for e in uses)
            producer = self.producer(name)
            known = producer is None or producer.op_type in WEIGHTED | HOMOGENEOUS
            if producer is None and self.model.graph.inputs[0].dtype != ir.DataType.FLOAT:
                continue  # pixels; what is quantized is the normalized image
            weighted = any(self.nodes[e.node].op_type in WEIGHTED for e in uses)
            if name != self.output and not only_relu and (known or weighted):
                wanted.append(name)
        return wanted

    def quantized_edges(self, rules: TargetRules) -> list[Edge]:
        """Where a target wants a Q/DQ pair, in graph order."""
        edges: list[Edge] = []
        for node in self.nodes.values():
            if node.op_type in WEIGHTED:
                edges.append(Edge(self.data_inputs(node)[0], str(node.name), 0))
            elif self.is_add(node):
                edges.extend(self._add_edges(node, rules))
            elif rules.pooling and node.op_type in {"MaxPool", "GlobalAveragePool"}:
                edges.append(Edge(self.data_inputs(node)[0], str(node.name), 0))
        return edges

    def _add_edges(self, node: ir.Node, rules: TargetRules) -> list[Edge]:
        first, second = self.data_inputs(node)
        if rules.add_inputs == "both":
            return [Edge(first, str(node.name), 0), Edge(second, str(node.name), 1)]
        bare = [self._is_layer_output(first), self._is_layer_output(second)]
        if bare == [True, False]:
            residual = 1
        elif bare == [False, True]:
            residual = 0
        else:  # both branches end in a convolution: the shorter one is the shortcut
            residual = 1 if self._depth[second] <= self._depth[first] else 0
        return [Edge((first, second)[residual], str(node.name), residual)]

    def _is_layer_output(self, tensor: str) -> bool:
        producer = self.producer(tensor)
        return producer is not None and producer.op_type in WEIGHTED

    # --- channel groups ---------------------------------------------------------------------------

    def channel_groups(self) -> list[ChannelGroup]:
        """Partition of the tensors into groups that share a channel axis."""
        parent: dict[str, str] = {name: name for name in [self.input, *self._producer]}

        def find(name: str) -> str:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        for node in self.nodes.values():
            if node.op_type in HOMOGENEOUS and (node.op_type != "Add" or self.is_add(node)):
                for source in self.data_inputs(node):
                    parent[find(source)] = find(str(node.outputs[0].name))
        groups: dict[str, ChannelGroup] = {}
        for name in parent:
            groups.setdefault(find(name), ChannelGroup([])).tensors.append(name)
        for node in self.nodes.values():
            self._assign(node, groups, find)
        for name in (self.input, self.output):
            groups[find(name)].closed = False
        return list(groups.values())

    def _assign(self, node: ir.Node, groups: dict[str, ChannelGroup], find: object) -> None:
        assert callable(find)
        out = groups[find(str(node.outputs[0].name))]
        if node.op_type in WEIGHTED:
            out.producers.append(str(node.name))
            source = groups[find(self.data_inputs(node)[0])]
            source.consumers.append(str(node.name))
            if self.groups_of(node) != 1:
                source.closed = False
        elif node.op_type not in HOMOGENEOUS or (node.op_type == "Add" and not self.is_add(node)):
            out.closed = False
            for name in self.data_inputs(node):
                groups[find(name)].closed = False


def analyse(model: ir.Model) -> Topology:
    """View a graph as a residual network.

    Raises:
        GraphError: BatchNorm that is not folded, weights that are computed or shared, nameless nodes.
    """
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            raise GraphError(
                f"{node.name or 'a node'} is a BatchNorm that is not folded",
                mend="export with resnet-opt export",
            )
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            raise GraphError(
                "the graph is quantized already", mend="give the FP32 graph it was made from"
            )
        if node.op_type == "Gemm" and not _plain(node):
            raise GraphError(f"{node.name} is a Gemm with alpha, beta or transA")
    topology = Topology(model)
    list(topology.layers())
    return topology


def _plain(gemm: ir.Node) -> bool:
    attributes = gemm.attributes
    factors = (attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0))
    return factors == (1.0, 1.0) and not attributes.get_int("transA", 0)
