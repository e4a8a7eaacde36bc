"""Read an INT8 graph from any quantizer: a float graph, tensor scales and weight integers.

Accepts graphs that express INT8 by QuantizeLinear / DequantizeLinear: from NVIDIA ModelOpt and NNCF
(float or integer weights behind a pair), ONNX Runtime's quantizer (INT8 weights, INT32 biases), QAT
exports, and `optimizer.precision.int8.lowering` itself.

Rules: a pair on a computed tensor is removed and becomes an entry of ``tensors``; a Q, a DQ or both
on a constant become a float constant and, for the weight of a layer, an entry of ``weight_scales``.
A zero point equal to the smallest integer, on a tensor that is not the output of a ReLU, means that a
quantizer absorbed the ReLU: it is restored. BatchNorm after a convolution (left by QAT exports) is
folded into the scales of its weights. Half types around INT8 are converted to float32, and the shift
in this project's graphs for TensorRT is removed from their biases.

Not handled, and rejected with the reason: integer operators (QLinearConv and similar), integers of
other than 8 bits, blockwise scales, per-channel scales of a computed tensor, weights that do not fit
in signed 8 bits once their zero point is subtracted, a tensor with different scales at its readers,
integers read by anything other than a DequantizeLinear, scales computed in the graph.
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
from optimizer.graphs.facts import INTEGER_OPS, QDQ_OPS
from optimizer.graphs.metadata import remove_precision_metadata, write_metadata
from optimizer.graphs.shared_strides import move_strides_to_convolutions
from optimizer.graphs.topology import WEIGHTED, analyse
from optimizer.precision.int8.folding import Folded, fold_batchnorm
from optimizer.precision.int8.undo_lowering import (
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
_SIGN_PRESERVING = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape"})
_OPSET_COMPATIBLE = _SIGN_PRESERVING | {"Conv", "Gemm", "Relu", "Add", "Mul", "Cast", "Transpose"}
_OPSET = 20
"""FP16 scales need opset 19; `_OPSET_COMPATIBLE` operations are the same from 13 to this one."""


@dataclass(frozen=True)
class ReadTensor:
    """The source's encoding of one tensor."""

    scale: float
    zero_point: int
    dtype: Literal["s8", "u8"]

    @property
    def below(self) -> int:
        """Number of levels below zero: 0 after a ReLU, 128 if symmetric."""
        return self.zero_point - _BITS[self.dtype][0]


@dataclass(frozen=True)
class ReadWeight:
    """The source's encoding of one layer's weights, output channels first.

    Attributes:
        scale: float32[O]; a per-tensor scale is repeated.
        integers: int8, O x I x ….
    """

    scale: NDArray[np.float32]
    integers: NDArray[np.int8]

    @property
    def sums(self) -> NDArray[np.float64]:
        """Sum of the dequantized weights per output channel: float64[O]."""
        sums = self.integers.reshape(len(self.integers), -1).sum(axis=1, dtype=np.int64)
        return np.asarray(sums * self.scale.astype(np.float64))


@dataclass
class ReadModel:
    """The result of `read_quantized`.

    Attributes:
        float_model: FP32, without Q/DQ; its weights are the dequantized integers.
        tensors: Encodings of computed tensors, by their names in ``float_model``.
        weight_scales: Encodings of quantized weights, by the names of their layers.
    """

    float_model: ir.Model
    tensors: dict[str, ReadTensor] = field(default_factory=dict)
    weight_scales: dict[str, ReadWeight] = field(default_factory=dict)


@dataclass(frozen=True)
class _Grid:
    """Scale, zero point, type and axis of one Q or DQ node."""

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
        """Scale or zero point, reshaped to broadcast over a tensor of this rank."""
        if array.size == 1:
            return array.reshape([1] * rank)
        return array.reshape([-1 if axis == self.axis % rank else 1 for axis in range(rank)])


def read_quantized(model: ir.Model) -> ReadModel:
    """Read a Q/DQ graph.

    Args:
        model: The graph; modified in place, it becomes ``float_model``.

    Returns:
        The float graph and the source's encodings.

    Raises:
        GraphError: The graph has no Q/DQ, or something that this module does not handle (see its
            docstring).
    """
    _reject_integer_operators(model.graph)
    shifted = shifted_tensors(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.NameFixPass()(model)
    widen(model)
    restore_relus(model)
    move_strides_to_convolutions(model)
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


def _reject_integer_operators(graph: ir.Graph) -> None:
    kinds = {node.op_type for node in graph}
    on_integers = sorted(kinds & INTEGER_OPS)
    if on_integers:
        raise GraphError(
            f"the graph has integer operators ({', '.join(on_integers)}), "
            "from which the float operations cannot be restored",
            hint="quantize with Q/DQ (onnxruntime: quant_format=QuantFormat.QDQ)",
        )
    foreign = [n for n in graph if n.op_type in QDQ_OPS and n.domain not in _DOMAINS]
    if foreign:
        raise GraphError(
            f"{foreign[0].name} is a {foreign[0].op_type} of the unknown domain {foreign[0].domain}"
        )
    if not kinds & QDQ_OPS:
        raise GraphError("the graph has no Q/DQ nodes, so it is not quantized")


def _finish(model: ir.Model) -> None:
    opsets = model.graph.opset_imports
    if all(node.op_type in _OPSET_COMPATIBLE and node.domain == "" for node in model.graph):
        opsets[""] = max(opsets.get("", 0), _OPSET)
    remove_precision_metadata(model)
    write_metadata(model, precision="fp32")


class _Reader:
    """Removes the pairs one by one, in graph order."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.result = ReadModel(model)
        self.restored_relus: dict[int, ir.Value] = {}

    def read(self) -> ReadModel:
        """Remove all pairs."""
        for node in list(self.graph):
            if node.op_type == "QuantizeLinear":
                self._check_readers(node)
        for node in list(self.graph):
            if node.op_type == "DequantizeLinear":
                self._dequantize(node)
        return self.result

    def _check_readers(self, node: ir.Node) -> None:
        value = node.outputs[0]
        readers = [n for n in value.consumers() if n.op_type != "DequantizeLinear"]
        if readers or value.is_graph_output() or not value.uses():
            by = readers[0].name if readers else "no node"
            raise GraphError(
                f"the integers of {_tensor(node)} are read by {by}, not by a DequantizeLinear",
                hint="use the graph that the quantizer wrote, before any engine optimized it",
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
            source_name = "a graph input" if quantize is None else quantize.name
            raise GraphError(
                f"{node.name} reads integers from {source_name}, not from a QuantizeLinear",
                hint="use the graph that the quantizer wrote, before any engine optimized it",
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
        for name, folded in fold_batchnorm(self.graph, self.result.tensors).items():
            node, channels = layers[name], len(folded.factor)
            inputs = [_read(node, index) for index in (1, 2)]
            if inputs[0] is None:
                continue  # computed weight: `analyse` reports it
            column = folded.factor.reshape(-1, *([1] * (inputs[0].ndim - 1)))
            weight = (inputs[0] * column).astype(np.float32)
            if name in self.result.weight_scales:
                scaled = _scaled(self.result.weight_scales[name], folded)
                self.result.weight_scales[name] = scaled
                weight = scaled.integers * scaled.scale.reshape(column.shape)
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
                f"{_tensor(quantize)} has {grid.scale.size} per-channel scales",
                hint="quantize activations per tensor; only weights may have per-channel scales",
            )
        kind: Literal["s8", "u8"] = "s8" if grid.dtype == ir.DataType.INT8 else "u8"
        tensor = ReadTensor(float(grid.scale.item()), int(grid.zero_point.item()), kind)
        if dequantize.outputs[0].is_graph_output():
            # `bypass` gives the tensor the name of the graph's output; it is recorded under that name.
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
        first_read = self.result.tensors.setdefault(name, tensor)
        if first_read != tensor:
            raise GraphError(
                f"{name} has two encodings: scale {first_read.scale:g} with zero point "
                f"{first_read.zero_point}, and scale {tensor.scale:g} with {tensor.zero_point}",
                hint="quantize it with one scale for all its readers",
            )

    def _rectified(self, value: ir.Value) -> ir.Value:
        """The tensor itself if it cannot be negative, otherwise the output of a restored ReLU."""
        if _non_negative(value):
            return value
        if id(value) not in self.restored_relus:
            self.restored_relus[id(value)] = insert_relu(self.graph, value, f"{value.name}.relu")
        return self.restored_relus[id(value)]

    # --- constants -------------------------------------------------------------------------------

    def _constant(self, node: ir.Node, integers: NDArray[np.int64], grid: _Grid, name: str) -> None:
        """Replace a dequantized constant by float constants, one per reader."""
        rank = integers.ndim
        if grid.scale.size not in {1, integers.shape[grid.axis % rank] if rank else 1}:
            raise GraphError(f"{name} has {grid.scale.size} scales for a shape {integers.shape}")
        signed = integers - grid.along(grid.zero_point, rank)
        values = signed.astype(np.float32) * grid.along(grid.scale, rank)
        for use in list(node.outputs[0].uses()):
            layer = use.node
            if layer.op_type in WEIGHTED and use.idx == 1:
                self.result.weight_scales[str(layer.name)] = _weight(layer, signed, grid)
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
            f"the weight of {layer.name} does not fit in signed 8 bits because of its zero point",
            hint="quantize weights symmetrically (onnxruntime: weight_type=QInt8)",
        )
    last = layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0)
    outputs = signed.shape[1 if last else 0]
    if grid.scale.size != 1 and grid.axis % signed.ndim != int(last):
        raise GraphError(
            f"the weight of {layer.name} has scales along axis {grid.axis}, "
            "not along the output channels"
        )
    integers = np.ascontiguousarray(signed.T if last else signed).astype(np.int8)
    return ReadWeight(np.array(np.broadcast_to(grid.scale.reshape(-1), outputs)), integers)


def _scaled(weight: ReadWeight, folded: Folded) -> ReadWeight:
    """Weights times a factor per channel; a negated -128 becomes 127."""
    signs = np.sign(folded.factor).astype(np.int64)
    column = signs.reshape(-1, *([1] * (weight.integers.ndim - 1)))
    scale = np.abs(folded.factor) * weight.scale.astype(np.float64)
    kept = np.where(signs == 0, weight.scale, scale).astype(np.float32)
    return ReadWeight(kept, np.clip(weight.integers * column, -128, 127).astype(np.int8))


def _grid(node: ir.Node) -> _Grid:
    """Read and check the scale, zero point, type and axis of a Q or DQ node."""
    scale = _read(node, 1)
    if scale is None:
        raise GraphError(f"the scale of {_tensor(node)} is computed in the graph")
    if scale.ndim > 1 or node.attributes.get_int("block_size", 0) != 0:
        raise GraphError(
            f"{_tensor(node)} has blockwise scales", hint="quantize per tensor or per channel"
        )
    valid = np.isfinite(scale) & (scale > 0)
    weights = _read(node, 0)
    # Integers times a scale of 0 are 0; floats that are quantized with it may be anything.
    zero_weights = weights is not None and (
        node.op_type == "DequantizeLinear" or not np.any(weights)
    )
    if not valid.all() and zero_weights:
        dead = np.count_nonzero(scale == 0)
        if dead == np.count_nonzero(~valid):
            raise GraphError(
                f"{dead} of {scale.size} scales of the weights {_tensor(node)} are 0: these weights "
                "are all zero, so the layer computes nothing with them",
                hint="check whether it was pruned or never trained; resnet-opt quantize takes its "
                "FP32 graph and gives zero weights a scale",
            )
    if not valid.all():
        raise GraphError(
            f"the scale of {_tensor(node)} is {scale[~valid].item(0):g}, which is invalid",
            hint="calibrate the source again: scales must be positive",
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
        hint="quantize to INT8; other types are not supported",
    )


def _tensor(node: ir.Node) -> str:
    """The name of the quantized tensor, for error messages."""
    value = node.inputs[0]
    return str(value.name if value is not None else node.name)


def _non_negative(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _SIGN_PRESERVING | QDQ_OPS:
        source = node.inputs[0]
        assert source is not None
        node = source.producer()
    return node is not None and node.op_type == "Relu"
