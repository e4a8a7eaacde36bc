"""What a graph says of itself without being run: operations, bytes, inputs, metadata."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import GraphError

__all__ = [
    "GraphFacts",
    "LayerWork",
    "graph_facts",
    "layer_flops",
    "layer_work",
]

_METADATA = "resnet_opt."


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
        metadata: The ``resnet_opt.*`` entries without their prefix.
    """

    input_name: str
    output_name: str
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    input_dtype: str
    image_size: int | None
    precision: str
    metadata: dict[str, str]

    @property
    def arch(self) -> str:
        """The architecture it was exported from; empty if it does not say."""
        return self.metadata.get("arch", "")

    @property
    def classes(self) -> list[str] | None:
        """Class names, if the graph carries them."""
        names = json.loads(self.metadata.get("classes", "[]"))
        return names or None

    @property
    def keep(self) -> list[str]:
        """Nodes that stay out of the graph's precision on purpose.

        Weighted layers of an INT8 or FP8 graph; whatever a half type cannot compute.
        """
        names: list[str] = json.loads(self.metadata.get("keep", "[]"))
        return names

    @property
    def notes(self) -> list[str]:
        """What the room that wrote the graph has to say of it."""
        notes: list[str] = json.loads(self.metadata.get("notes", "[]"))
        return notes

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """The preprocessing the graph expects, if it carries it."""
        raw = self.metadata.get("preprocessing")
        return json.loads(raw) if raw else None


def graph_facts(path: Path) -> GraphFacts:
    """Read and check an ONNX file that should be an image classifier.

    Raises:
        GraphError: No ONNX file, damaged, an operator set of the future, or no classifier.
    """
    proto = load_proto(path)
    initializers = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in initializers]
    outputs = list(proto.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise GraphError(
            f"{path.name} has {len(inputs)} inputs and {len(outputs)} outputs, a classifier has one of each"
        )
    (source,), (target,) = inputs, outputs
    in_shape, out_shape = _shape(source), _shape(target)
    if len(in_shape) != 4 or len(out_shape) != 2:
        raise GraphError(
            f"{path.name} maps {_words(in_shape)} to {_words(out_shape)}; "
            "an image classifier maps N x 3 x H x W to N x classes",
            mend="export it with resnet-opt export",
        )
    metadata = {
        p.key.removeprefix(_METADATA): p.value
        for p in proto.metadata_props
        if p.key.startswith(_METADATA)
    }
    images = source.type.tensor_type.elem_type == 2  # TensorProto.UINT8
    return GraphFacts(
        input_name=source.name,
        output_name=target.name,
        input_shape=in_shape,
        output_shape=out_shape,
        input_dtype="uint8" if images else "float32",
        image_size=in_shape[1] if images else in_shape[2],
        precision=_precision(proto, metadata.get("precision", "fp32")),
        metadata=metadata,
    )


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


def load_proto(path: Path) -> Any:
    """Load an ONNX file and refuse what `onnx.checker` refuses.

    TensorRT's parser accepts an empty file and a text file as a network of no layers, and an
    operator set that does not exist yet; so every graph passes here first.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise GraphError(f"no such file: {path}", mend="check the path")
    mend = "export it again with resnet-opt export"
    try:
        proto = onnx.load(path)
    except (FileNotFoundError, onnx.checker.ValidationError) as error:
        # The file itself is there: what is missing, or refused, is its external data.
        raise GraphError(
            f"the weights of {path.name} cannot be read: {str(error).splitlines()[0]}",
            mend="keep its data file beside it, or save the model as one file",
        ) from error
    except (DecodeError, ValueError, OSError) as error:
        raise GraphError(f"{path.name} is no ONNX file or is truncated", mend=mend) from error
    if not proto.graph.node:
        raise GraphError(f"{path.name} holds no graph", mend=mend)
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in {"", "ai.onnx"} and entry.version > newest:
            raise GraphError(
                f"{path.name} asks for opset {entry.version}; the newest known here is {newest}",
                mend="export it with --opset 20, or update onnx",
            )
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise GraphError(f"{path.name} is refused by onnx.checker: {first}", mend=mend) from error
    return proto


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

    proto = onnx.shape_inference.infer_shapes(load_proto(path))
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
