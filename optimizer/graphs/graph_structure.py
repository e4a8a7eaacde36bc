"""Checks that a graph is well formed, before anything works on it.

`onnx.checker` checks nodes and their order. It does not check the number of values in a tensor, names
that are not UTF-8, functions that expand without end, or how large the computed tensors are. Loops and
branches are refused: how long they run cannot be seen in the file, and a ResNet has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from optimizer.errors import GraphError
from optimizer.graphs.graph_limits import GraphLimits
from optimizer.units import format_bytes

__all__ = ["check_structure"]

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
_SMALL_TENSOR = 4096
"""Bytes up to which a constant is shown to the checker; shapes and axes are smaller."""
_EXPORT = "copy it again, or export it again, for example with resnet-opt export"


def check_structure(proto: Any, name: str, limits: GraphLimits) -> None:
    """Check a model whose size is known to be within the limits.

    Args:
        proto: An `onnx.ModelProto`; external tensors need not be loaded.
        name: Name of the file, for messages.
        limits: The limits.

    Raises:
        GraphError: The graph is empty or malformed, has a loop or branch, or exceeds a limit.
    """
    import onnx

    if not proto.graph.node:
        raise GraphError(f"{name} holds no graph", hint=_EXPORT)
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in _DEFAULT_DOMAINS and entry.version > newest:
            raise GraphError(
                f"{name} has opset {entry.version}, but the installed onnx supports up to {newest}",
                hint="export it with operator set 20, or update onnx: pip install --upgrade onnx",
            )
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    _check_names((value.name for value in values), name)
    _check_names(
        (text for entry in proto.metadata_props for text in (entry.key, entry.value)), name
    )
    _check_nodes(proto, name)
    _check_functions(proto, name, limits)
    for tensor in proto.graph.initializer:
        _check_tensor(tensor, name)
    outline = _outline(proto)
    # Before IR version 4 each initializer had to be an input too; many exporters did not care.
    outline.ir_version = max(outline.ir_version, 4)
    try:
        onnx.checker.check_model(outline)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        complaint = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise GraphError(
            f"{name} is rejected by onnx.checker: {complaint}", hint=_EXPORT
        ) from error
    _check_computed_sizes(outline, name, limits)


def _nodes(nodes: Any) -> Iterator[Any]:
    """Nodes and those of the graphs in their attributes."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                stack += graph.node


def _check_nodes(proto: Any, name: str) -> None:
    defined = {(function.domain, function.name) for function in proto.functions}
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _nodes(nodes):
            texts = [node.name, node.op_type, node.domain, *node.input, *node.output]
            texts += [attribute.name for attribute in node.attribute]
            _check_names(texts, name)
            own = (node.domain, node.op_type) in defined
            if node.op_type in _CONTROL_FLOW and node.domain in _DEFAULT_DOMAINS and not own:
                raise GraphError(
                    f"{name} has control flow: node {node.name or node.output[:1]} is a {node.op_type}",
                    hint="export the network for fixed shapes, or fold it (for example with onnxsim)",
                )


def _check_names(names: Iterable[str | bytes], file: str) -> None:
    """Protobuf returns bytes where a text is not UTF-8."""
    for name in names:
        if isinstance(name, bytes):
            raise GraphError(f"{file} has a name that is not UTF-8: {name!r}", hint=_EXPORT)
        if "\0" in name:
            raise GraphError(f"{file} has a name with a NUL character: {name!r}", hint=_EXPORT)


def _check_functions(proto: Any, name: str, limits: GraphLimits) -> None:
    """Refuse functions that call themselves, or expand to too many nodes."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def expanded(nodes: Any, active: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in _nodes(nodes):
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1
                continue
            if key in active or len(active) > 50:
                raise GraphError(f"{name}: function {node.op_type} calls itself", hint=_EXPORT)
            if key not in sizes:
                sizes[key] = expanded(functions[key].node, (*active, key))
            total += sizes[key]
        return total

    if functions and expanded(proto.graph.node, ()) > limits.nodes:
        raise GraphError(
            f"the functions of {name} expand to more than {limits.nodes:,} nodes",
            hint="no ResNet needs that; if you trust the file, set RESNET_OPT_MAX_NODES higher",
        )


def _check_tensor(tensor: Any, name: str) -> None:
    import onnx

    types = onnx.TensorProto
    known = tensor.data_type in types.DataType.values() and tensor.data_type != types.UNDEFINED
    if not known or any(size < 0 for size in tensor.dims):
        raise GraphError(
            f"{name}: the constant {tensor.name} has an invalid type or shape", hint=_EXPORT
        )
    if tensor.data_location == types.EXTERNAL or tensor.data_type == types.STRING:
        return
    values = math.prod(tensor.dims)
    expected, actual = _stored(tensor, values)
    if expected != actual:
        raise GraphError(
            f"{name}: the constant {tensor.name} has {actual} stored values or bytes, but its shape "
            f"{list(tensor.dims)} needs {expected}",
            hint=_EXPORT,
        )


def _stored(tensor: Any, values: int) -> tuple[int, int]:
    """How much a tensor must hold, and how much it holds: bytes if raw, else entries."""
    import onnx

    types = onnx.TensorProto
    if tensor.HasField("raw_data"):
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        kind = types.DataType.Name(tensor.data_type)
        if kind.endswith("INT4") or kind == "FLOAT4E2M1":
            bits = 4
        elif kind.endswith("INT2"):
            bits = 2
        return -(-values * bits // 8), len(tensor.raw_data)
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    count = len(getattr(tensor, field))
    kind = types.DataType.Name(tensor.data_type)
    if kind.startswith("COMPLEX"):
        return 2 * values, count
    if kind.endswith(("INT4", "INT2")) or kind == "FLOAT4E2M1":
        return count, count  # several values an entry; onnx.checker and the readers check these
    return values, count


def _outline(proto: Any) -> Any:
    """The model with large constants replaced by inputs: it takes no memory to check."""
    import onnx

    outline = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name not in {"graph", "training_info"}:
            target = getattr(outline, field.name)
            if isinstance(value, (int, str)):
                setattr(outline, field.name, value)
            elif hasattr(target, "MergeFrom"):
                target.MergeFrom(value)
    graph = proto.graph
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(outline.graph, name).MergeFrom(getattr(graph, name))
    outline.graph.name = "graph"
    for value in outline.graph.output:
        if value.type.HasField("tensor_type"):  # shapes of outputs are inferred if they are missing
            value.type.tensor_type.shape.SetInParent()
    inputs = {value.name for value in graph.input}
    seen: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in seen:
            raise GraphError(f"there are two constants named {tensor.name}", hint=_EXPORT)
        seen.add(tensor.name)
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= _SMALL_TENSOR:
            outline.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            outline.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return outline


def _check_computed_sizes(outline: Any, name: str, limits: GraphLimits) -> None:
    import onnx

    del outline.graph.value_info[:]  # what the file claims would hide what it computes
    for value in outline.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(outline, True, True, True)  # strictly
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        reason = " ".join((str(error).strip() or type(error).__name__).split())[:300]
        raise GraphError(
            f"the types or shapes of {name} contradict each other: {reason}", hint=_EXPORT
        ) from error
    constants = {tensor.name for tensor in outline.graph.initializer}
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name in constants or not value.type.HasField("tensor_type"):
            continue
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        size = 4 * math.prod(dim for dim in dims[1:] if dim > 0)
        if size > limits.tensor:
            raise GraphError(
                f"{name}: the tensor {value.name} has {dims} values, more than "
                f"{format_bytes(limits.tensor)} an image",
                hint="if you trust the file, set RESNET_OPT_MAX_TENSOR to a larger size",
            )
