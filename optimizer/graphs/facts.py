"""Facts about a graph, read without running it: inputs, outputs, metadata, work per layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import GraphError
from optimizer.graphs.metadata import Metadata
from optimizer.graphs.onnx_files import open_onnx
from optimizer.graphs.source_ends import SourceGraph, ends_in_probabilities, open_source
from optimizer.graphs.widening import float_types
from optimizer.options import ForeignGraph

__all__ = [
    "INTEGER_OPS",
    "QDQ_OPS",
    "GraphFacts",
    "LayerWork",
    "facts_of",
    "graph_facts",
    "input_and_output",
    "is_quantized",
    "layer_flops",
    "layer_work",
]

QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
INTEGER_OPS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QLinearAdd",
        "QLinearGlobalAveragePool",
        "QLinearAveragePool",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeLinear",
    }
)
"""Operators that compute on integers directly, without Q/DQ around them."""


@dataclass(frozen=True)
class GraphFacts:
    """Facts about one ONNX file.

    Attributes:
        input_name, output_name: Names of the input and the output.
        input_shape, output_shape: Dimensions; ``None`` where dynamic.
        input_dtype: ``float32`` or ``uint8``.
        image_size: Height of the images, pixels; ``None`` if dynamic.
        precision: The precision in the metadata; for a graph of another tool ``int8`` if it is
            quantized, else the type of most weights (``fp32``, ``fp16``, ``bf16`` or ``fp64``).
        probabilities: Whether the graph ends in Softmax or Sigmoid.
        opset: Version of the default ONNX operator set.
        metadata: The graph's own metadata.
    """

    input_name: str
    output_name: str
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    input_dtype: str
    image_size: int | None
    precision: str
    probabilities: bool
    opset: int
    metadata: Metadata

    @property
    def arch(self) -> str:
        """See `Metadata.arch`."""
        return self.metadata.arch

    @property
    def classes(self) -> list[str] | None:
        """See `Metadata.classes`."""
        return self.metadata.classes

    @property
    def detector(self) -> dict[str, Any] | None:
        """See `Metadata.detector`."""
        return self.metadata.detector

    @property
    def keep(self) -> list[str]:
        """See `Metadata.keep`."""
        return self.metadata.keep

    @property
    def notes(self) -> list[str]:
        """See `Metadata.notes`."""
        return self.metadata.notes

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """See `Metadata.preprocessing`."""
        return self.metadata.preprocessing


def graph_facts(path: Path, options: ForeignGraph | None = None) -> GraphFacts:
    """Read and check the ONNX file of an image classifier or a detector.

    Args:
        path: The file; its ends are described as `open_source` makes them.
        options: As in `open_source`.

    Raises:
        GraphError: As in `open_source`; or the graph is neither, or its only output is a probability.
    """
    return facts_of(open_source(path, options))


def facts_of(source_graph: SourceGraph) -> GraphFacts:
    """Facts about a file that was read by `open_source`.

    Raises:
        GraphError: The graph is not an image classifier.
    """
    proto, path = source_graph.proto, source_graph.path
    source, target = input_and_output(proto, path.name)
    in_shape, out_shape = _shape(source), _shape(target)
    metadata = Metadata.of_proto(proto)
    if len(in_shape) != 4 or len(out_shape) != (2 if metadata.detector is None else 3):
        expected = (
            "an image classifier maps N x channels x H x W to N x classes"
            if metadata.detector is None
            else "a detector maps N x 3 x H x W to N x anchors x values"
        )
        raise GraphError(
            f"{path.name} maps {_format_shape(in_shape)} to {_format_shape(out_shape)}, but "
            f"{expected}",
            hint="give the file of a whole network",
        )
    if metadata.detector is None:
        _check_single_output(proto, target.name, out_shape, path.name)
    images = source.type.tensor_type.elem_type == 2  # TensorProto.UINT8
    return GraphFacts(
        input_name=source.name,
        output_name=target.name,
        input_shape=in_shape,
        output_shape=out_shape,
        input_dtype="uint8" if images else "float32",
        image_size=in_shape[1] if images else in_shape[2],
        precision=_precision(proto, metadata.get("precision")),
        probabilities=ends_in_probabilities(proto),
        opset=max(
            (e.version for e in proto.opset_import if e.domain in {"", "ai.onnx"}), default=0
        ),
        metadata=metadata,
    )


def _check_single_output(proto: Any, output: str, shape: tuple[int | None, ...], name: str) -> None:
    """Refuse a single probability: one output is taken as the logit of a sigmoid."""
    last = next((node for node in proto.graph.node if output in node.output), None)
    if shape[1] == 1 and last is not None and last.op_type == "Sigmoid":
        raise GraphError(
            f"{name} outputs one probability ({last.name or 'a Sigmoid'}), but one output is taken "
            "as the logit of a sigmoid",
            hint="export the network without its final sigmoid: the classes stay the same, "
            "because a probability of 0.5 is a logit of 0",
        )


def input_and_output(proto: Any, name: str) -> tuple[Any, Any]:
    """The input and the output of a classifier, as `onnx.ValueInfoProto`.

    Args:
        proto: An `onnx.ModelProto`; initializers listed as inputs are ignored.
        name: Name of the graph for error messages.

    Raises:
        GraphError: There is not exactly one input and one output.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    outputs = list(proto.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise GraphError(
            f"{name} has {len(inputs)} inputs and {len(outputs)} outputs; a classifier has one of each"
        )
    return inputs[0], outputs[0]


def is_quantized(graph: Path) -> bool:
    """Whether an ONNX file contains Q/DQ or integer operators.

    Raises:
        GraphError: As in `open_onnx`.
    """
    proto = open_onnx(graph, weights=False).proto
    return any(node.op_type in QDQ_OPS | INTEGER_OPS for node in proto.graph.node)


def _precision(proto: Any, declared: str | None) -> str:
    """Detect INT8 by 8-bit zero points, since quantizers keep the exporter's metadata or have none."""
    if declared not in (None, "fp32"):
        return declared
    constants = [(t.name, t) for t in proto.graph.initializer]
    constants += [
        (node.output[0], attribute.t)
        for node in proto.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    eight_bits = {name for name, tensor in constants if tensor.data_type in {2, 3}}  # UINT8, INT8
    for node in proto.graph.node:
        is_eight_bits = len(node.input) < 3 or node.input[2] in eight_bits
        if node.op_type == "QuantizeLinear" and is_eight_bits:
            return "int8"
    counts = {} if declared else float_types(proto)
    return max(counts, key=lambda name: counts[name], default="fp32")


def _shape(value: Any) -> tuple[int | None, ...]:
    return tuple(
        d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
    )


def _format_shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("?" if d is None else str(d) for d in shape) or "a scalar"


@dataclass(frozen=True)
class LayerWork:
    """Work of one layer per image.

    Attributes:
        flops: Floating-point operations, 2 per multiply-accumulate.
        weights, inputs, outputs: Number of values read and written.
    """

    flops: int
    weights: int
    inputs: int
    outputs: int


def layer_work(path: Path) -> dict[str, LayerWork]:
    """Work per image of each Conv, Gemm and MatMul, by layer name (or output) in graph order.

    The batch and unknown spatial dimensions count as 1.

    Raises:
        GraphError: As in `open_checked`; or shapes contradict each other.
    """
    import onnx

    try:
        proto = onnx.shape_inference.infer_shapes(open_source(path).proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GraphError(
            f"{path.name}: shapes cannot be inferred: {reason}", hint="export it again"
        ) from error
    shapes = {
        v.name: _shape(v)
        for v in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    }
    shapes.update({t.name: tuple(t.dims) for t in proto.graph.initializer})
    work = {}
    for node in proto.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        weights = _size(shapes.get(node.input[1], ()))
        output = shapes.get(node.output[0], ())
        positions = _size(output[2:]) if node.op_type == "Conv" else 1
        work[node.name or node.output[0]] = LayerWork(
            flops=2 * weights * positions,
            weights=weights,
            inputs=_size(shapes.get(node.input[0], ())[1:]),
            outputs=_size(output[1:]),
        )
    return work


def _size(shape: tuple[int | None, ...]) -> int:
    return math.prod(dimension or 1 for dimension in shape)


def layer_flops(path: Path) -> dict[str, int]:
    """Floating-point operations per image, by layer name; see `layer_work`."""
    return {name: work.flops for name, work in layer_work(path).items()}
