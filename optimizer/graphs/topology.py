"""Structure of a residual network for quantization: layers, channel groups, quantized edges.

Works on exported graphs: ``Conv``, ``Gemm``, ``Relu``, ``Add``, ``MaxPool``, ``GlobalAveragePool``
and ``Flatten``, with constant weights. Other operators, among them a BatchNorm that could not be
folded, stay in high precision and are treated as opaque.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import GraphError, UsageError
from optimizer.targets.rules import TARGETS, TargetRules

__all__ = ["PASS_THROUGH_OPS", "ChannelGroup", "Edge", "Topology", "analyse"]

WEIGHTED = frozenset({"Conv", "Gemm"})
HOMOGENEOUS = frozenset({"Relu", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten"})
"""Operators that commute with a positive factor per channel (see `Topology.commutes`)."""
PASS_THROUGH_OPS = frozenset({"MaxPool", "Flatten"})
"""Operators whose outputs are a selection of their inputs, so input and output share a scale."""


@dataclass(frozen=True)
class Edge:
    """A tensor as input ``index`` of a node."""

    tensor: str
    node: str
    index: int


@dataclass
class ChannelGroup:
    """Tensors that share one channel axis, with the layers that write and read them.

    All tensors of a group can be scaled by one positive factor per channel. The residual stream of
    a stage is one group; the tensor between two convolutions of a block is another.
    """

    tensors: list[str]
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    closed: bool = True
    """False if the group is written or read by anything but weighted layers (the graph's input, say)."""


class Topology:
    """A read-only view of a graph; tensors and nodes are named as in the graph."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes: dict[str, ir.Node] = {str(n.name): n for n in model.graph}
        if len(self.nodes) != len(model.graph):
            raise GraphError("the graph has nodes without a name or with duplicate names")
        self._constants = set(model.graph.initializers)
        self.input = next(str(v.name) for v in model.graph.inputs if v.name not in self._constants)
        self.output = str(model.graph.outputs[0].name)
        self._producer = {str(v.name): n for n in model.graph for v in n.outputs}
        self._depth = self._depths()

    # --- lookups ---------------------------------------------------------------------------------

    def producer(self, tensor: str) -> ir.Node | None:
        """The node that computes a tensor; ``None`` for the graph's input."""
        return self._producer.get(tensor)

    def has(self, tensor: str) -> bool:
        """Whether a computed tensor or the input has this name."""
        return tensor in self._producer or tensor == self.input

    def consumers(self, tensor: str) -> list[Edge]:
        """The edges that read a tensor."""
        producer = self._producer.get(tensor)
        value = (
            next(v for v in producer.outputs if v.name == tensor)
            if producer is not None
            else next(v for v in self.model.graph.inputs if v.name == tensor)
        )
        return [Edge(tensor, str(use.node.name), use.idx) for use in value.uses()]

    def data_inputs(self, node: ir.Node) -> list[str]:
        """Inputs that are not constants."""
        count = 1 if node.op_type in WEIGHTED else len(node.inputs)
        names = [str(v.name) for v in node.inputs[:count] if v is not None]
        return [name for name in names if name not in self._constants]

    def is_add(self, node: ir.Node) -> bool:
        """Whether this is an Add of two computed tensors (not of a constant)."""
        return node.op_type == "Add" and len(self.data_inputs(node)) == 2

    def layers(self) -> Iterator[ir.Node]:
        """Weighted layers in graph order.

        Raises:
            GraphError: A weight is not a constant, or two layers share one.
        """
        owners: dict[str, str] = {}
        for node in self.nodes.values():
            if node.op_type not in WEIGHTED:
                continue
            weight = str(node.inputs[1].name) if node.inputs[1] is not None else ""
            if weight not in self._constants:
                raise GraphError(
                    f"the weight of {node.name} is computed in the graph",
                    hint="export it with resnet-opt export, or fold constants first",
                )
            if weight in owners:
                raise GraphError(
                    f"{node.name} and {owners[weight]} share the weight {weight}",
                    hint="give each layer its own copy, because scales and biases differ",
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
        """Bias per output channel; zeros if there is none."""
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return np.zeros(len(self.weight(node)), np.float32)
        return self._constant(node, 2).astype(np.float32).reshape(-1)

    def _constant(self, node: ir.Node, index: int) -> NDArray[np.float32]:
        value = node.inputs[index]
        assert value is not None
        if value.const_value is None:
            raise GraphError(f"{value.name} of {node.name} is not a constant")
        return value.const_value.numpy()

    def has_padding(self, node: ir.Node) -> bool:
        """Whether a convolution or pooling pads its input."""
        automatic = node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
        return node.op_type in {"Conv", "MaxPool", "AveragePool"} and (
            automatic or any(node.attributes.get_ints("pads", ()) or ())
        )

    def conv_groups(self, node: ir.Node) -> int:
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
        """Number of nodes on the longest path from the graph's input."""
        return self._depth[tensor]

    # --- quantization --------------------------------------------------------------------------------

    def after_relu(self, tensor: str) -> bool:
        """Whether a tensor is the output of a ReLU, directly or through pooling: non-negative."""
        producer = self.producer(tensor)
        while producer is not None and producer.op_type in {
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "Flatten",
        }:
            producer = self.producer(self.data_inputs(producer)[0])
        return producer is not None and producer.op_type == "Relu"

    def observed_tensors(self) -> list[str]:
        """Tensors whose statistics some target may need, in graph order."""
        quantized = {e.tensor for rules in TARGETS.values() for e in self.quantized_edges(rules)}
        observed: list[str] = []
        for name in [self.input, *self._producer]:
            uses = self.consumers(name)
            only_relu = bool(uses) and all(self.nodes[e.node].op_type == "Relu" for e in uses)
            producer = self.producer(name)
            supported = producer is None or producer.op_type in WEIGHTED | HOMOGENEOUS
            if producer is None and self.model.graph.inputs[0].dtype != ir.DataType.FLOAT:
                continue  # raw pixels: the normalized image is quantized instead
            weighted = any(self.nodes[e.node].op_type in WEIGHTED for e in uses)
            # The output is not quantized, but in FP16 it may overflow.
            if name in quantized or (not only_relu and (supported or weighted)):
                observed.append(name)
        return observed

    def quantized_edges(self, rules: TargetRules, keep: Collection[str] = ()) -> list[Edge]:
        """The edges where a target needs a Q/DQ pair, in graph order.

        Args:
            rules: The target's rules.
            keep: Weighted layers that stay in high precision. They get no pair, and neither does
                pooling that feeds them. An Add is kept or quantized together with the layer it
                fuses with (the last one of its block).
        """
        edges: list[Edge] = []
        for node in self.nodes.values():
            if node.op_type in WEIGHTED:
                if node.name not in keep:
                    edges.append(Edge(self.data_inputs(node)[0], str(node.name), 0))
            elif self.is_add(node):
                edges.extend(self._add_edges(node, rules, keep))
            elif self._passes_integers(node, rules, keep):
                edges.append(Edge(self.data_inputs(node)[0], str(node.name), 0))
        return edges

    def _passes_integers(self, node: ir.Node, rules: TargetRules, keep: Collection[str]) -> bool:
        pools = rules.pooling and node.op_type in {"MaxPool", "GlobalAveragePool"}
        flattens = rules.flatten and node.op_type == "Flatten"
        return (pools or flattens) and not self._feeds_kept(node, keep)

    def _feeds_kept(self, pooling: ir.Node, keep: Collection[str]) -> bool:
        """Whether a kept layer reads the output of a pooling, directly or through similar nodes."""
        for edge in self.consumers(str(pooling.outputs[0].name)):
            if edge.node in keep:
                return True
            reader = self.nodes[edge.node]
            transparent = reader.op_type in HOMOGENEOUS and reader.op_type != "Add"
            if transparent and self._feeds_kept(reader, keep):
                return True
        return False

    def _add_edges(self, node: ir.Node, rules: TargetRules, keep: Collection[str]) -> list[Edge]:
        inputs = self.data_inputs(node)
        from_layer = [self._is_layer_output(tensor) for tensor in inputs]
        if from_layer == [True, False]:
            residual = 1
        elif from_layer == [False, True]:
            residual = 0
        else:  # both branches end in a convolution: the shorter one is the shortcut
            residual = 1 if self._depth[inputs[1]] <= self._depth[inputs[0]] else 0
        fused = self._last_layer(inputs[1 - residual])
        if fused is not None and str(fused.name) in keep:
            return []
        quantized = (0, 1) if rules.add_inputs == "both" else (residual,)
        return [Edge(inputs[index], str(node.name), index) for index in quantized]

    def _last_layer(self, tensor: str) -> ir.Node | None:
        """The nearest weighted layer upstream of a tensor."""
        node = self.producer(tensor)
        while node is not None and node.op_type not in WEIGHTED:
            sources = self.data_inputs(node)
            node = self.producer(max(sources, key=self.depth)) if sources else None
        return node

    def check_layers(self, names: Collection[str]) -> tuple[str, ...]:
        """Check names of weighted layers; returns them without duplicates in graph order.

        Raises:
            UsageError: A name is not a weighted layer; the hint suggests the closest one.
        """
        layers = [str(node.name) for node in self.layers()]
        for name in names:
            if name not in layers:
                matches = difflib.get_close_matches(name, layers, n=1, cutoff=0.0)
                raise UsageError(
                    f"the graph has no layer {name!r} with weights",
                    hint=f"did you mean {matches[0]}?" if matches else None,
                )
        return tuple(name for name in layers if name in names)

    def _is_layer_output(self, tensor: str) -> bool:
        producer = self.producer(tensor)
        return producer is not None and producer.op_type in WEIGHTED

    # --- channel groups ---------------------------------------------------------------------------

    def channel_groups(self) -> list[ChannelGroup]:
        """Partition the tensors into groups that share a channel axis (by union-find)."""
        parent: dict[str, str] = {name: name for name in [self.input, *self._producer]}

        def find(name: str) -> str:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        for node in self.nodes.values():
            if self.commutes(node):
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

    def commutes(self, node: ir.Node) -> bool:
        """Whether a factor per channel of the inputs passes unchanged to the outputs."""
        if node.op_type == "Add":
            return self.is_add(node)
        if node.op_type == "Flatten":  # flattening larger feature maps mixes positions and channels
            return self._is_one_position(self.data_inputs(node)[0])
        return node.op_type in HOMOGENEOUS

    def _is_one_position(self, tensor: str) -> bool:
        producer = self.producer(tensor)
        if producer is None:
            return False
        if producer.op_type in {"GlobalAveragePool", "Flatten", "Gemm"}:
            return True
        shape = next(v.shape for v in producer.outputs if v.name == tensor)
        return shape is not None and all(d == 1 for d in shape[2:])

    def _assign(self, node: ir.Node, groups: dict[str, ChannelGroup], find: object) -> None:
        assert callable(find)
        out = groups[find(str(node.outputs[0].name))]
        if node.op_type in WEIGHTED:
            out.producers.append(str(node.name))
            source = groups[find(self.data_inputs(node)[0])]
            source.consumers.append(str(node.name))
            if self.conv_groups(node) != 1:
                source.closed = False
        elif not self.commutes(node):
            out.closed = False
            for name in self.data_inputs(node):
                groups[find(name)].closed = False


def analyse(model: ir.Model) -> Topology:
    """Analyse a graph as a residual network.

    Raises:
        GraphError: The graph is already quantized, weights are computed or shared, nodes have no
            names, or there is not exactly one input and one output.
    """
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            raise GraphError(
                "the graph is already quantized", hint="pass the FP32 graph it was made from"
            )
        if node.op_type == "Gemm" and not _is_plain_gemm(node):
            raise GraphError(f"{node.name} is a Gemm with alpha, beta or transA (not supported)")
    inputs = [v.name for v in model.graph.inputs if v.name not in model.graph.initializers]
    for kind, names in (("inputs", inputs), ("outputs", [v.name for v in model.graph.outputs])):
        if len(names) != 1:
            raise GraphError(
                f"the graph has {len(names)} {kind} ({', '.join(map(str, names))}); a classifier has one",
                hint="export only the logits",
            )
    topology = Topology(model)
    list(topology.layers())
    return topology


def _is_plain_gemm(gemm: ir.Node) -> bool:
    attributes = gemm.attributes
    factors = (attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0))
    return factors == (1.0, 1.0) and not attributes.get_int("transA", 0)
