"""FP16 and BF16 graphs: all floating-point constants and operations in the half type.

Inputs and outputs stay float32 (a Cast at each end), and so do inputs that ONNX defines as float32,
such as the scales of a Resize. There is no list of operations to keep in FP32:
a node stays in FP32 only if a constant it reads, or a tensor it reads or writes, exceeds the range of
the type (`out_of_range`). Ranges of tensors come from calibration; without statistics, only constants
are checked, and validation finds what overflows.

Not handled: a tensor that stays in range on all calibration images and overflows on others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optimizer.errors import GraphError
from optimizer.graphs.editing import add_constant, insert_after, make_cast
from optimizer.graphs.metadata import write_metadata

__all__ = ["LARGEST", "out_of_range", "overflowing_constants", "to_half"]

_NUMPY = {
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
"""The largest finite value of each type."""
_NAMES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
BF16_OPSET = 22
"""The first opset in which Conv and pooling accept bfloat16."""


def overflowing_constants(model: ir.Model, dtype: ir.DataType) -> list[str]:
    """Names of constants with values outside the range of the type."""
    limit = LARGEST[dtype]
    return [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT
        and value.const_value is not None
        and value.const_value.numpy().size
        and float(np.abs(value.const_value.numpy()).max()) > limit
    ]


def out_of_range(
    model: ir.Model, dtype: ir.DataType, largest: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Nodes that cannot be computed in a half type, each with the reason.

    Args:
        model: The FP32 graph; its nodes have names.
        dtype: ``FLOAT16`` or ``BFLOAT16``.
        largest: Largest absolute value of each tensor on the calibration images. The input of a
            ReLU may be missing: the value of its output is used.

    Returns:
        Reasons by node name, in graph order.
    """
    limit, title = LARGEST[dtype], _NAMES[dtype].upper()
    large = {name: value for name, value in (largest or {}).items() if value > limit}
    for node in model.graph:
        output, source = str(node.outputs[0].name), node.inputs[0] if node.inputs else None
        if node.op_type == "Relu" and output in large and source is not None:
            large.setdefault(str(source.name), large[output])
    constants = set(overflowing_constants(model, dtype))
    reasons: dict[str, str] = {}
    for node in model.graph:
        names = [str(v.name) for v in (*node.outputs, *node.inputs) if v is not None]
        for name in names:
            if name in large:
                reasons[str(node.name)] = (
                    f"{name} reaches {large[name]:,.0f} on the calibration images, above the {title} "
                    f"maximum of {limit:,.0f}"
                )
                break
            if name in constants:
                reasons[str(node.name)] = f"{name} has values above {limit:,.0f}"
                break
    return reasons


def to_half(model: ir.Model, dtype: ir.DataType, keep: Collection[str] = ()) -> bool:
    """Convert float32 constants and operations of a graph to FP16 or BF16, in place.

    Args:
        model: The graph; float32 or uint8 input, float32 output.
        dtype: ``FLOAT16`` or ``BFLOAT16``.
        keep: Nodes that stay in FP32, from `out_of_range`; Casts are inserted around them.

    Returns:
        True.

    Raises:
        GraphError: A constant read by a node outside ``keep`` exceeds the range of the type.
    """
    graph = model.graph
    for name in overflowing_constants(model, dtype):
        if any(use.node.name not in keep for use in graph.initializers[name].uses()):
            raise GraphError(
                f"{name} has values outside the range of {_NAMES[dtype].upper()}",
                hint="use --precision bf16, which has the range of FP32"
                if dtype == ir.DataType.FLOAT16
                else None,
            )
    if dtype == ir.DataType.BFLOAT16:
        graph.opset_imports[""] = max(graph.opset_imports.get("", 0), BF16_OPSET)
    for name, value in list(graph.initializers.items()):
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            _convert(graph, name, value, dtype, keep)
    for node in graph:
        if node.name in keep:
            continue
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = dtype
    _cast_between(graph, dtype, keep)
    _cast_outputs(graph, dtype)
    write_metadata(model, precision=_NAMES[dtype])
    return True


def _stays_float(node: ir.Node, index: int, graph: ir.Graph, dtype: ir.DataType) -> bool:
    """Whether the operator's definition does not allow the half type for this input."""
    import onnx

    if node.domain not in {"", "ai.onnx"}:
        return False
    schema = onnx.defs.get_schema(node.op_type, graph.opset_imports.get("", 1), "")
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]  # the last one may be variadic
    allowed = {formal.type_str}
    for constraint in schema.type_constraints:
        if constraint.type_param_str == formal.type_str:
            allowed = set(constraint.allowed_type_strs)
    return "tensor(float)" in allowed and f"tensor({dtype.name.lower()})" not in allowed


def _convert(
    graph: ir.Graph, name: str, value: ir.Value, dtype: ir.DataType, keep: Collection[str]
) -> None:
    """Convert a constant to the half type; inputs that stay float32 get an FP32 copy."""
    kept = [
        use
        for use in value.uses()
        if use.node.name in keep or _stays_float(use.node, use.idx, graph, dtype)
    ]
    if kept and len(kept) == len(list(value.uses())):
        return
    assert value.const_value is not None
    exact = value.const_value.numpy()
    if kept:
        copy = add_constant(graph, f"{name}.float", exact)
        for use in kept:
            use.node.replace_input_with(use.idx, copy)
    value.const_value = ir.tensor(exact.astype(_NUMPY[dtype]), dtype=dtype, name=name)
    value.dtype = dtype


def _cast_between(graph: ir.Graph, dtype: ir.DataType, keep: Collection[str]) -> None:
    """Insert a Cast wherever the dtype of a tensor differs from the one its reader computes in."""
    casts: dict[tuple[str, ir.DataType], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in {ir.DataType.FLOAT, dtype}:
                continue
            exact = node.name in keep or _stays_float(node, index, graph, dtype)
            required = ir.DataType.FLOAT if exact else dtype
            if value.dtype != required:
                key = (str(value.name), required)
                if key not in casts:
                    casts[key] = _cast(graph, value, required)
                node.replace_input_with(index, casts[key])


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    short = "float" if to == ir.DataType.FLOAT else "half"
    name = f"{value.name}.to_{short}"
    cast = make_cast(value, to, name=name, output=f"{value.name}.{short}")
    insert_after(graph, value, cast)
    return cast.outputs[0]


def _cast_outputs(graph: ir.Graph, dtype: ir.DataType) -> None:
    for index, value in enumerate(list(graph.outputs)):
        producer = value.producer()
        if producer is None or value.dtype != dtype:
            continue
        name = str(value.name)
        cast = make_cast(value, ir.DataType.FLOAT, name=f"{name}.to_float", output=name)
        value.name = f"{name}.half"
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
