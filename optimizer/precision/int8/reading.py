"""Reading an INT8 graph of anybody: a float graph, scales of its tensors, integers of its weights.

Takes graphs that say their INT8 by QuantizeLinear / DequantizeLinear: from NVIDIA ModelOpt and NNCF
(float or integer weights behind a pair), ONNX Runtime's quantizer (INT8 weights, int32 biases),
QAT exports, and `optimizer.precision.int8.lowering` itself.

Rules: a pair on a computed tensor becomes an entry of ``tensors`` and goes away; a Q, a DQ or both
on a constant become a float constant, and for the weight of a layer an entry of ``weight_scales``.
A zero point at the smallest integer, on a tensor that no ReLU has made, is a ReLU that somebody
absorbed: it is put back. BatchNorm after a convolution (QAT exports leave it) goes into the scales
of its weights. Half types around INT8 become float32 again, and the shift of this project's graphs
for TensorRT is taken out of their biases.

Not handled, and refused with the reason: operators on integers (QLinearConv and the like), integers
of other than 8 bits, blockwise scales, scales per channel of a computed tensor, weights whose zero
point leaves no signed 8 bits, a tensor with different scales at its readers, integers that anything
but a DequantizeLinear reads, scales that are computed in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from optimizer.errors import GraphError
from optimizer.graphs.editing import add_constant, bypass, fresh_name
from optimizer.graphs.facts import ON_INTEGERS, PAIR
from optimizer.graphs.metadata import forget_precision, write_metadata
from optimizer.graphs.topology import WEIGHTED, analyse
from optimizer.precision.int8.folding import Folded, fold_batchnorm
from optimizer.precision.int8.undoing import (
    insert_relu,
    restore_relus,
    shifted_tensors,
    unshift,
    widen,
)

__all__ = ["ReadModel", "ReadTensor", "ReadWeight", "read_quantized"]

_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_EIGHT_BITS = {ir.DataType.INT8: "s8", ir.DataType.UINT8: "u8"}
_BITS = {"s8": (-128, 127), "u8": (0, 255)}
_KEEP_SIGN = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape"})
_PLAIN = _KEEP_SIGN | {"Conv", "Gemm", "Relu", "Add", "Mul", "Cast", "Transpose"}
_OPSET = 20
"""FP16 scales need 19; from 13 to here the operations of `_PLAIN` mean the same."""


@dataclass(frozen=True)
class ReadTensor:
    """How the source stores one tensor."""

    scale: float
    zero_point: int
    dtype: Literal["s8", "u8"]

    @property
    def below(self) -> int:
        """Levels below zero: 0 after a ReLU, 128 around zero."""
        return self.zero_point - _BITS[self.dtype][0]


@dataclass(frozen=True)
class ReadWeight:
    """How the source stores one layer's weights, output channel first.

    Attributes:
        scale: float32[O]; a scale of the whole tensor is repeated.
        integers: int8, O x I x ….
    """

    scale: NDArray[np.float32]
    integers: NDArray[np.int8]

    @property
    def sums(self) -> NDArray[np.float64]:
        """Sum of what the integers stand for, by output channel: float64[O]."""
        sums = self.integers.reshape(len(self.integers), -1).sum(axis=1, dtype=np.int64)
        return np.asarray(sums * self.scale.astype(np.float64))


@dataclass
class ReadModel:
    """What `read_quantized` found.

    Attributes:
        float_model: FP32, without Q/DQ; weights are the values that their integers stand for.
        tensors: Computed tensors with a pair, by their names in ``float_model``.
        weight_scales: Quantized layers by the names of their nodes.
    """

    float_model: ir.Model
    tensors: dict[str, ReadTensor] = field(default_factory=dict)
    weight_scales: dict[str, ReadWeight] = field(default_factory=dict)


@dataclass(frozen=True)
class _Grid:
    """The constants of one Q or DQ node."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    dtype: ir.DataType
    axis: int

    def same(self, other: _Grid) -> bool:
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def along(self, array: NDArray[np.float32] | NDArray[np.int64], rank: int) -> NDArray:
        """Scale or zero point, to be broadcast over a tensor of this rank."""
        if array.size == 1:
            return array.reshape([1] * rank)
        return array.reshape([-1 if axis == self.axis % rank else 1 for axis in range(rank)])


def read_quantized(model: ir.Model) -> ReadModel:
    """Read a Q/DQ graph.

    Args:
        model: The graph; it is consumed and becomes ``float_model``.

    Returns:
        The float graph and what the source quantized.

    Raises:
        GraphError: There is no Q/DQ, or something that the module's docstring calls not handled.
    """
    _refuse_operators(model.graph)
    shifted = shifted_tensors(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.NameFixPass()(model)
    widen(model)
    restore_relus(model)
    reader = _Reader(model)
    read = reader.read()
    reader.fold()
    passes.RemoveUnusedNodesPass()(model)
    _finish(model)
    topology = analyse(model)
    if shifted:
        scales = {name: tensor.scale for name, tensor in read.tensors.items()}
        sums = {name: weight.sums for name, weight in read.weight_scales.items()}
        unshift(topology, shifted, scales, sums)
        for name in shifted:
            read.tensors[name] = ReadTensor(read.tensors[name].scale, 0, "u8")
    return read


def _refuse_operators(graph: ir.Graph) -> None:
    kinds = {node.op_type for node in graph}
    on_integers = sorted(kinds & ON_INTEGERS)
    if on_integers:
        raise GraphError(
            f"the graph computes on integers ({', '.join(on_integers)}), "
            "so that the float operations it stands for are gone",
            hint="quantize with Q/DQ (onnxruntime: quant_format=QuantFormat.QDQ)",
        )
    foreign = [n for n in graph if n.op_type in PAIR and n.domain not in _DOMAINS]
    if foreign:
        raise GraphError(f"{foreign[0].name} is a {foreign[0].op_type} of {foreign[0].domain}")
    if not kinds & PAIR:
        raise GraphError("the graph carries no Q/DQ: there is nothing to read")


def _finish(model: ir.Model) -> None:
    opsets = model.graph.opset_imports
    if all(node.op_type in _PLAIN and node.domain == "" for node in model.graph):
        opsets[""] = max(opsets.get("", 0), _OPSET)
    forget_precision(model)
    write_metadata(model, precision="fp32")


class _Reader:
    """Takes the pairs out one by one, in the order of the graph."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.found = ReadModel(model)
        self.relus: dict[int, ir.Value] = {}

    def read(self) -> ReadModel:
        """Take out all pairs."""
        for node in list(self.graph):
            if node.op_type == "QuantizeLinear":
                self._check_readers(node)
        for node in list(self.graph):
            if node.op_type == "DequantizeLinear":
                self._dequantize(node)
        return self.found

    def _check_readers(self, node: ir.Node) -> None:
        value = node.outputs[0]
        readers = [n for n in value.consumers() if n.op_type != "DequantizeLinear"]
        if readers or value.is_graph_output() or not value.uses():
            by = readers[0].name if readers else "nobody"
            raise GraphError(
                f"the integers of {_tensor(node)} are read by {by}, not by a DequantizeLinear",
                hint="give the graph as the quantizer wrote it, before an engine fused it",
            )

    def _dequantize(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        quantize = source.producer()
        if source.const_value is not None:
            integers = source.const_value.numpy()
            if integers.dtype.itemsize == 1 or integers.dtype == np.int32:
                self._constant(node, integers.astype(np.int64), _grid(node), str(source.name))
            else:
                raise _wrong_type(node, source.dtype)
        elif quantize is None or quantize.op_type != "QuantizeLinear":
            by = "outside" if quantize is None else quantize.name
            raise GraphError(
                f"{node.name} reads integers that come from {by}, not from a QuantizeLinear",
                hint="give the graph as the quantizer wrote it, before an engine fused it",
            )
        else:
            self._pair(quantize, node)

    def _pair(self, quantize: ir.Node, dequantize: ir.Node) -> None:
        grid = _grid(quantize)
        if not grid.same(_grid(dequantize)):
            raise GraphError(f"{quantize.name} and {dequantize.name} have different scales")
        source = quantize.inputs[0]
        assert source is not None
        if source.const_value is not None:
            values = source.const_value.numpy().astype(np.float32)
            scale, zero = (grid.along(a, values.ndim) for a in (grid.scale, grid.zero_point))
            low, high = _BITS[_EIGHT_BITS[grid.dtype]]
            integers = np.clip(np.rint(values / scale) + zero, low, high).astype(np.int64)
            self._constant(dequantize, integers, grid, str(source.name))
        else:
            self._tensor(quantize, dequantize, grid)

    def fold(self) -> None:
        """Fold BatchNorm into the layers before it, quantized or not."""
        layers = {str(node.name): node for node in self.graph}
        for name, folded in fold_batchnorm(self.graph, self.found.tensors).items():
            node, channels = layers[name], len(folded.factor)
            inputs = [_read(node, index) for index in (1, 2)]
            if inputs[0] is None:
                continue  # computed: `analyse` says so
            column = folded.factor.reshape(-1, *([1] * (inputs[0].ndim - 1)))
            weight = (inputs[0] * column).astype(np.float32)
            if name in self.found.weight_scales:
                moved = _scaled(self.found.weight_scales[name], folded)
                self.found.weight_scales[name] = moved
                weight = moved.integers * moved.scale.reshape(column.shape)
            old = np.zeros(channels) if inputs[1] is None else inputs[1].astype(np.float64)
            bias = (old * folded.factor + folded.shift).astype(np.float32)
            if inputs[1] is None:
                node.resize_inputs(3)
            for index, role, array in ((1, "weight", weight), (2, "bias", bias)):
                node.replace_input_with(index, self._register(f"{name}.{role}", array))

    # --- computed tensors ------------------------------------------------------------------------

    def _tensor(self, quantize: ir.Node, dequantize: ir.Node, grid: _Grid) -> None:
        if grid.scale.size != 1:
            raise GraphError(
                f"{_tensor(quantize)} has {grid.scale.size} scales, one a channel",
                hint="quantize activations per tensor; only weights may have scales per channel",
            )
        kind: Literal["s8", "u8"] = "s8" if grid.dtype == ir.DataType.INT8 else "u8"
        tensor = ReadTensor(float(grid.scale.item()), int(grid.zero_point.item()), kind)
        if dequantize.outputs[0].is_graph_output():
            # The name of the graph's output goes to the tensor before it is written down.
            bypass(self.graph, quantize)
            bypass(self.graph, dequantize)
            source = self.graph.outputs[0]
        else:
            first = quantize.inputs[0]
            assert first is not None
            source = self._rectified(first) if tensor.below == 0 else first
            ir.convenience.replace_all_uses_with(dequantize.outputs[0], source)
            self.graph.remove(dequantize, safe=True)
            if not quantize.outputs[0].uses():
                self.graph.remove(quantize, safe=True)
        name = str(source.name)
        known = self.found.tensors.setdefault(name, tensor)
        if known != tensor:
            raise GraphError(
                f"{name} has two encodings: scale {known.scale:g} with zero point "
                f"{known.zero_point}, and scale {tensor.scale:g} with {tensor.zero_point}",
                hint="quantize it once for all its readers",
            )

    def _rectified(self, value: ir.Value) -> ir.Value:
        """The tensor as a saturation at zero leaves it: itself, or a ReLU that is put back."""
        if _non_negative(value):
            return value
        if id(value) not in self.relus:
            self.relus[id(value)] = insert_relu(self.graph, value, f"{value.name}.relu")
        return self.relus[id(value)]

    # --- constants -------------------------------------------------------------------------------

    def _constant(self, node: ir.Node, integers: NDArray[np.int64], grid: _Grid, name: str) -> None:
        """Replace a dequantized constant by float constants, one for each reader."""
        rank = integers.ndim
        if grid.scale.size not in {1, integers.shape[grid.axis % rank] if rank else 1}:
            raise GraphError(f"{name} has {grid.scale.size} scales for a shape {integers.shape}")
        signed = integers - grid.along(grid.zero_point, rank)
        values = signed.astype(np.float32) * grid.along(grid.scale, rank)
        for use in list(node.outputs[0].uses()):
            layer = use.node
            if layer.op_type in WEIGHTED and use.idx == 1:
                self.found.weight_scales[str(layer.name)] = _weight(layer, signed, grid)
            role = {1: "weight", 2: "bias"}.get(use.idx) if layer.op_type in WEIGHTED else None
            stem = f"{layer.name}.{role or f'input_{use.idx}'}"
            layer.replace_input_with(use.idx, self._register(stem, values))
        self.graph.remove(node, safe=True)

    def _register(self, name: str, array: NDArray[np.float32]) -> ir.Value:
        return add_constant(self.graph, fresh_name(name, self.graph.initializers, ".float"), array)


def _weight(layer: ir.Node, signed: NDArray[np.int64], grid: _Grid) -> ReadWeight:
    if grid.dtype not in _EIGHT_BITS:
        raise GraphError(f"the weight of {layer.name} is {grid.dtype}, not INT8")
    if signed.min(initial=0) < -128 or signed.max(initial=0) > 127:
        raise GraphError(
            f"the weight of {layer.name} has a zero point that leaves no signed 8 bits",
            hint="quantize weights symmetrically (onnxruntime: weight_type=QInt8)",
        )
    last = layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0)
    outputs = signed.shape[1 if last else 0]
    if grid.scale.size != 1 and grid.axis % signed.ndim != int(last):
        raise GraphError(
            f"the weight of {layer.name} has its scales along axis {grid.axis}, "
            "not along the output channels"
        )
    integers = np.ascontiguousarray(signed.T if last else signed).astype(np.int8)
    return ReadWeight(np.array(np.broadcast_to(grid.scale.reshape(-1), outputs)), integers)


def _scaled(weight: ReadWeight, folded: Folded) -> ReadWeight:
    """Weights times a factor by channel; -128 that changes its sign becomes 127."""
    signs = np.sign(folded.factor).astype(np.int64)
    column = signs.reshape(-1, *([1] * (weight.integers.ndim - 1)))
    scale = np.abs(folded.factor) * weight.scale.astype(np.float64)
    kept = np.where(signs == 0, weight.scale, scale).astype(np.float32)
    return ReadWeight(kept, np.clip(weight.integers * column, -128, 127).astype(np.int8))


def _grid(node: ir.Node) -> _Grid:
    """Scale, zero point and type of a Q or DQ node, checked."""
    scale = _read(node, 1)
    if scale is None:
        raise GraphError(f"the scale of {_tensor(node)} is computed in the graph")
    if scale.ndim > 1 or node.attributes.get_int("block_size", 0) != 0:
        raise GraphError(
            f"{_tensor(node)} has scales of blocks", hint="quantize per tensor or per channel"
        )
    usable = np.isfinite(scale) & (scale > 0)
    if not usable.all():
        raise GraphError(
            f"the scale of {_tensor(node)} is {scale[~usable].item(0):g}, which holds no values",
            hint="calibrate the source again: a scale is positive",
        )
    zero = _read(node, 2)
    kind = _type_of(node)
    allowed = {*_EIGHT_BITS, *([ir.DataType.INT32] if node.op_type == "DequantizeLinear" else [])}
    if kind not in allowed:
        raise _wrong_type(node, kind)
    points = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    return _Grid(
        scale.astype(np.float32).reshape(-1), points, kind, node.attributes.get_int("axis", 1) or 0
    )


def _type_of(node: ir.Node) -> ir.DataType:
    point = node.inputs[2] if len(node.inputs) > 2 else None
    if point is not None and point.dtype is not None:
        return point.dtype
    if node.op_type == "QuantizeLinear":
        return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    source = node.inputs[0]
    assert source is not None
    producer = source.producer()
    return _type_of(producer) if producer is not None else source.dtype or ir.DataType.UNDEFINED


def _read(node: ir.Node, index: int) -> NDArray | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _wrong_type(node: ir.Node, kind: ir.DataType | None) -> GraphError:
    return GraphError(
        f"{_tensor(node)} is quantized to {kind}, not to 8-bit integers",
        hint="quantize to INT8; other types are not read",
    )


def _tensor(node: ir.Node) -> str:
    """The name a reader knows: what is quantized, or the integers."""
    value = node.inputs[0]
    return str(value.name if value is not None else node.name)


def _non_negative(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _KEEP_SIGN | PAIR:
        source = node.inputs[0]
        assert source is not None
        node = source.producer()
    return node is not None and node.op_type == "Relu"
