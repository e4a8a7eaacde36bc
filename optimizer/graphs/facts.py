"""What a graph says of itself without being run: operations, bytes, inputs, metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import GraphError
from optimizer.graphs.metadata import Metadata
from optimizer.graphs.onnx_files import open_checked, open_onnx

__all__ = [
    "ON_INTEGERS",
    "PAIR",
    "GraphFacts",
    "LayerWork",
    "graph_facts",
    "input_and_output",
    "is_quantized",
    "layer_flops",
    "layer_work",
]

PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
ON_INTEGERS = frozenset(
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
"""Operations that compute on integers, so that no Q/DQ says what they stand for."""


@dataclass(frozen=True)
class GraphFacts:
    """Facts of one ONNX file.

    Attributes:
        input_name, output_name: The one input and the one output.
        input_shape, output_shape: Dimensions; ``None`` where dynamic.
        input_dtype: ``float32`` or ``uint8``.
        image_size: Height of the images, ``None`` where dynamic.
        precision: What the exporter or a precision pass wrote (``fp32`` if nothing); ``int8`` too
            for a graph that somebody else has quantized since.
        opset: Version of ONNX's own operator set.
        metadata: What it says of itself.
    """

    input_name: str
    output_name: str
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    input_dtype: str
    image_size: int | None
    precision: str
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


def graph_facts(path: Path) -> GraphFacts:
    """Read and check an ONNX file that should be an image classifier.

    Raises:
        GraphError: No ONNX file, damaged, an operator set of the future, or no classifier.
    """
    proto = open_checked(path).proto
    source, target = input_and_output(proto, path.name)
    in_shape, out_shape = _shape(source), _shape(target)
    if len(in_shape) != 4 or len(out_shape) != 2:
        raise GraphError(
            f"{path.name} maps {_words(in_shape)} to {_words(out_shape)}; "
            "an image classifier maps N x 3 x H x W to N x classes",
            hint="export it with resnet-opt export",
        )
    metadata = Metadata.of_proto(proto)
    images = source.type.tensor_type.elem_type == 2  # TensorProto.UINT8
    return GraphFacts(
        input_name=source.name,
        output_name=target.name,
        input_shape=in_shape,
        output_shape=out_shape,
        input_dtype="uint8" if images else "float32",
        image_size=in_shape[1] if images else in_shape[2],
        precision=_precision(proto, metadata.precision),
        opset=max(
            (e.version for e in proto.opset_import if e.domain in {"", "ai.onnx"}), default=0
        ),
        metadata=metadata,
    )


def input_and_output(proto: Any, name: str) -> tuple[Any, Any]:
    """The one input and the one output of a classifier, as `onnx.ValueInfoProto`.

    Args:
        proto: An `onnx.ModelProto`; initializers among its inputs do not count.
        name: What an error calls it.

    Raises:
        GraphError: There are several, or none.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    outputs = list(proto.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise GraphError(
            f"{name} has {len(inputs)} inputs and {len(outputs)} outputs, a classifier has one of each"
        )
    return inputs[0], outputs[0]


def is_quantized(graph: Path) -> bool:
    """Whether an ONNX file computes on integers or carries Q/DQ.

    Raises:
        GraphError: No such file, or no ONNX file.
    """
    proto = open_onnx(graph, weights=False).proto
    return any(node.op_type in PAIR | ON_INTEGERS for node in proto.graph.node)


def _precision(proto: Any, written: str) -> str:
    """Quantizers keep an exporter's metadata, or there is none: 8-bit zero points tell."""
    if written != "fp32":
        return written
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
        known = len(node.input) < 3 or node.input[2] in eight_bits
        if node.op_type == "QuantizeLinear" and known:
            return "int8"
    return "fp32"


def _shape(value: Any) -> tuple[int | None, ...]:
    return tuple(
        d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
    )


def _words(shape: tuple[int | None, ...]) -> str:
    return " x ".join("?" if d is None else str(d) for d in shape) or "a scalar"


@dataclass(frozen=True)
class LayerWork:
    """What one layer does for one image.

    Attributes:
        flops: 2 x multiply-accumulates.
        weights, inputs, outputs: Numbers of values that are read and written.
    """

    flops: int
    weights: int
    inputs: int
    outputs: int


def layer_work(path: Path) -> dict[str, LayerWork]:
    """Work of one image by layer name, of Conv, Gemm and MatMul in graph order.

    Batch and unknown spatial dimensions count as 1.
    """
    import onnx

    proto = onnx.shape_inference.infer_shapes(open_checked(path).proto)
    shapes = {
        v.name: _shape(v)
        for v in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    }
    shapes.update({t.name: tuple(t.dims) for t in proto.graph.initializer})
    work = {}
    for node in proto.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        weights = _values(shapes.get(node.input[1], ()))
        output = shapes.get(node.output[0], ())
        positions = _values(output[2:]) if node.op_type == "Conv" else 1
        work[node.name] = LayerWork(
            flops=2 * weights * positions,
            weights=weights,
            inputs=_values(shapes.get(node.input[0], ())[1:]),
            outputs=_values(output[1:]),
        )
    return work


def _values(shape: tuple[int | None, ...]) -> int:
    return math.prod(dimension or 1 for dimension in shape)


def layer_flops(path: Path) -> dict[str, int]:
    """Operations of one image by layer name; see `layer_work`."""
    return {name: work.flops for name, work in layer_work(path).items()}
