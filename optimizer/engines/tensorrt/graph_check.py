"""Checks an ONNX file before TensorRT parses it.

TensorRT's parser accepts empty files and text files as networks without layers, opsets that do not
exist yet, DOUBLE inputs (as FLOAT) and, with only a warning, UINT8 quantization (as INT8, which gives
wrong results). All of these are errors here, and the message names the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.engines.protocol import TensorSpec
from optimizer.engines.tensorrt.names import module_path
from optimizer.errors import GraphError
from optimizer.graphs.onnx_files import checker_error, open_onnx

__all__ = ["CheckedGraph", "check_graph", "place"]

_EXPORT = "export it again with resnet-opt export"
_LOWER = "lower it for TensorRT: resnet-opt quantize --precision int8 --target tensorrt"
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_INT8, _UINT8, _INT32 = "INT8", "UINT8", "INT32"
_PRECISIONS = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "INT8": "int8",
    "FLOAT8E4M3FN": "fp8",
}


@dataclass(frozen=True)
class CheckedGraph:
    """An ONNX file that passed the checks, and what the build needs to know about it.

    Attributes:
        path: The file.
        input, output: Its only input and its only output.
        weights: For each node with weights, the precision of its operands and the type of its
            result (``("int8", "fp16")``).
        gemms: The nodes in ``weights`` that are matrix products.
        nodes: The names of all nodes.
    """

    path: Path
    input: TensorSpec
    output: TensorSpec
    weights: dict[str, tuple[str, str]]
    gemms: frozenset[str]
    nodes: frozenset[str]

    @property
    def batch(self) -> int | None:
        """The fixed batch size; ``None`` if it is dynamic."""
        return self.input.shape[0]

    @property
    def precisions(self) -> set[str]:
        """The precisions of the layers with weights."""
        return {precision for precision, _ in self.weights.values()}

    @property
    def high_precisions(self) -> set[str]:
        """The floating-point types of the results of layers with weights."""
        return {high for _, high in self.weights.values()}


def check_graph(path: Path) -> CheckedGraph:
    """Read and check an ONNX file.

    Raises:
        GraphError: The file is damaged, or TensorRT cannot compile its graph.
    """
    model = _read(path)
    _check_opset(model, path)
    _check_external_data(model, path)
    _check_standard(path)
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    constants = {**initializers, **_constant_nodes(graph)}
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise GraphError(
            f"{path.name} has {len(inputs)} inputs and {len(graph.output)} outputs, "
            "an image classifier has one of each",
            hint=_EXPORT,
        )
    source, target = _spec(inputs[0]), _spec(graph.output[0])
    _check_input(source, path)
    _check_types(initializers, path)
    _check_quantization(graph, constants)
    weights = _weights(graph, constants)
    return CheckedGraph(
        path=path,
        input=source,
        output=target,
        weights=weights,
        gemms=frozenset(n.name for n in graph.node if n.op_type in {"Gemm", "MatMul"}),
        nodes=frozenset(n.name for n in graph.node if n.name),
    )


def place(node: str, operator: str) -> str:
    """A node for messages: its name, its operator and its PyTorch layer."""
    module = module_path(node)
    layer = f", PyTorch layer {module}" if module else ""
    return f"node {node or '(unnamed)'} ({operator}{layer})"


# --- the file ------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    model = open_onnx(path, weights=False).proto
    if path.stat().st_size == 0:
        raise GraphError(f"{path.name} is an empty file", hint=_EXPORT)
    if not model.graph.node:
        raise GraphError(f"{path.name} holds no graph", hint=_EXPORT)
    return model


def _check_opset(model: Any, path: Path) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"} and entry.version > newest:
            raise GraphError(
                f"{path.name} uses opset {entry.version}, the newest supported one is {newest}",
                hint="export it with --opset 20, or update the onnx package",
            )


def _check_external_data(model: Any, path: Path) -> None:
    import onnx

    folder = path.parent.resolve()
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        name = next((e.value for e in tensor.external_data if e.key == "location"), "")
        data = (folder / name).resolve()
        if not data.is_relative_to(folder):
            raise GraphError(
                f"{path.name} stores {tensor.name} outside its folder, in {name}",
                hint="save the model as one file, or put its data file beside it",
            )
        if not data.is_file():
            raise GraphError(
                f"{path.name} stores {tensor.name} in {name}, which is not beside it",
                hint="copy the data file into the same folder",
            )


def _check_standard(path: Path) -> None:
    complaint = checker_error(path, full=False)
    if complaint is not None:
        line = complaint.rstrip(".")
        raise GraphError(f"{path.name} is not valid ONNX: {line}", hint=_EXPORT)


# --- the types -----------------------------------------------------------------------------------


def _type_name(number: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(number))


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorSpec(value.name, shape, _type_name(tensor.elem_type).lower())


def _check_input(source: TensorSpec, path: Path) -> None:
    if source.dtype not in {"float", "float16", "uint8"}:
        raise GraphError(
            f"{path.name} takes {source.dtype.upper()}, the input of a TensorRT engine must be "
            "FLOAT, FLOAT16 or UINT8",
            hint=_EXPORT,
        )
    if len(source.shape) != 4 or any(d is None for d in source.shape[1:]):
        shape = " x ".join("?" if d is None else str(d) for d in source.shape)
        raise GraphError(
            f"{path.name} takes {shape}, an engine needs a fixed image size (N x 3 x H x W)",
            hint="export it with --image-size",
        )


def _check_types(initializers: dict[str, Any], path: Path) -> None:
    for name, tensor in initializers.items():
        if _type_name(tensor.data_type) == "DOUBLE":
            raise GraphError(
                f"{path.name} stores {name} as DOUBLE, which TensorRT computes as FLOAT",
                hint=_EXPORT,
            )


def _constant_nodes(graph: Any) -> dict[str, Any]:
    return {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


# --- quantization --------------------------------------------------------------------------------


def _check_quantization(graph: Any, constants: dict[str, Any]) -> None:
    for node in graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        where = place(node.name, node.op_type)
        stored = constants.get(node.input[0])
        if stored is not None and _type_name(stored.data_type) == _INT32:
            raise GraphError(
                f"{where} dequantizes an INT32 bias, TensorRT needs biases in floating point",
                hint=f"{_LOWER} (ONNX Runtime's quantizer: QuantizeBias=False)",
            )
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        kind = _UINT8 if zero is None else _type_name(zero.data_type)
        if kind == _UINT8:
            raise GraphError(
                f"{where} is quantized to UINT8, TensorRT needs signed INT8 with zero point 0",
                hint=_LOWER,
            )
        if zero is not None and kind == _INT8 and _any_nonzero(zero):
            raise GraphError(
                f"{where} has a zero point other than 0, TensorRT supports symmetric quantization only",
                hint=_LOWER,
            )


def _any_nonzero(tensor: Any) -> bool:
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False  # too large for the ONNX file; the parser checks these zero points
    return bool(onnx.numpy_helper.to_array(tensor).any())


def _weights(graph: Any, constants: dict[str, Any]) -> dict[str, tuple[str, str]]:
    producers = {output: node for node in graph.node for output in node.output}
    return {
        node.name or node.output[0]: _operand(node.input[1], producers, constants)
        for node in graph.node
        if node.op_type in _WEIGHTED and len(node.input) > 1
    }


def _operand(tensor: str, producers: dict[str, Any], constants: dict[str, Any]) -> tuple[str, str]:
    """The precision of a weight, and the floating-point type it is dequantized to."""
    for node in _upstream(tensor, producers):
        if node.op_type == "DequantizeLinear":
            high = _constant_precision(node.input[1], constants)
            low = _constant_precision(node.input[0], constants)
            quantizer = producers.get(node.input[0])
            if quantizer is not None and len(quantizer.input) > 2:
                low = _constant_precision(quantizer.input[2], constants)
            return low, high
        tensor = node.input[0]
    precision = _constant_precision(tensor, constants)
    return precision, precision


def _upstream(tensor: str, producers: dict[str, Any]) -> Iterator[Any]:
    """The producers of a tensor, upstream along first inputs, through nodes that only move data."""
    while (node := producers.get(tensor)) is not None:
        if node.op_type not in {"DequantizeLinear", "Transpose", "Reshape", "Identity"}:
            return
        yield node
        tensor = node.input[0]


def _constant_precision(name: str, constants: dict[str, Any]) -> str:
    tensor = constants.get(name)
    if tensor is None:
        return "unknown"
    kind = _type_name(tensor.data_type)
    return _PRECISIONS.get(kind, kind.lower())
