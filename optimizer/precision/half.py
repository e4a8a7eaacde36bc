"""FP16 and BF16 graphs: every floating-point constant and operation in the half type.

Inputs and outputs stay float32 (a Cast at each end). Nothing is kept in FP32 by a guess or by a list
of operations: a node is, if a constant it reads or a tensor it reads or writes has values beyond the
type (`beyond`). For tensors that is what calibration saw; without statistics, constants alone count.

Not handled: a tensor that stays inside the type on all calibration images and leaves it on others;
`beyond` knows no more than what was seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optimizer.errors import GraphError
from optimizer.graphs.editing import add_constant, insert_after, make_cast
from optimizer.graphs.metadata import write_metadata

__all__ = ["LARGEST", "beyond", "overflowing", "to_half"]

_NUMPY = {
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
"""The largest value of each type."""
_NAMES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
BF16_OPSET = 22
"""Conv and pooling take bfloat16 from this operator set on."""


def overflowing(model: ir.Model, kind: ir.DataType) -> list[str]:
    """Names of constants that the type cannot hold."""
    limit = LARGEST[kind]
    return [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT
        and value.const_value is not None
        and value.const_value.numpy().size
        and float(np.abs(value.const_value.numpy()).max()) > limit
    ]


def beyond(
    model: ir.Model, kind: ir.DataType, seen: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Nodes that a half type cannot compute, each with the reason.

    Args:
        model: The FP32 graph; its nodes have names.
        kind: ``FLOAT16`` or ``BFLOAT16``.
        seen: Largest absolute value of tensors on the calibration images. The input of a ReLU is as
            large as its output, and need not be there.

    Returns:
        Reasons by node, in the order of the graph.
    """
    limit, title = LARGEST[kind], _NAMES[kind].upper()
    large = {name: size for name, size in (seen or {}).items() if size > limit}
    for node in model.graph:
        output, source = str(node.outputs[0].name), node.inputs[0] if node.inputs else None
        if node.op_type == "Relu" and output in large and source is not None:
            large.setdefault(str(source.name), large[output])
    constants = set(overflowing(model, kind))
    found: dict[str, str] = {}
    for node in model.graph:
        names = [str(v.name) for v in (*node.outputs, *node.inputs) if v is not None]
        for name in names:
            if name in large:
                found[str(node.name)] = (
                    f"{name} reaches {large[name]:,.0f} on the calibration images, and {title} ends "
                    f"at {limit:,.0f}"
                )
                break
            if name in constants:
                found[str(node.name)] = f"{name} has values beyond {limit:,.0f}"
                break
    return found


def to_half(model: ir.Model, kind: ir.DataType, keep: Collection[str] = ()) -> bool:
    """Convert float32 constants and operations of a graph to FP16 or BF16, in place.

    Args:
        model: The graph; float32 or uint8 input, float32 output.
        kind: ``FLOAT16`` or ``BFLOAT16``.
        keep: Nodes that stay in FP32, from `beyond`; Casts stand around them.

    Returns:
        True.

    Raises:
        GraphError: A constant of another node does not fit into the type; the message names it.
    """
    graph = model.graph
    for name in overflowing(model, kind):
        if any(use.node.name not in keep for use in graph.initializers[name].uses()):
            raise GraphError(
                f"{name} has values that {_NAMES[kind].upper()} cannot hold",
                hint="--precision bf16, which has the range of FP32"
                if kind == ir.DataType.FLOAT16
                else None,
            )
    for name, value in list(graph.initializers.items()):
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            _convert(graph, name, value, kind, keep)
    for node in graph:
        if node.name in keep:
            continue
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", kind)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = kind
    _cast_between(graph, kind, keep)
    _cast_outputs(graph, kind)
    write_metadata(model, precision=_NAMES[kind])
    if kind == ir.DataType.BFLOAT16:
        graph.opset_imports[""] = max(graph.opset_imports.get("", 0), BF16_OPSET)
    return True


def _convert(
    graph: ir.Graph, name: str, value: ir.Value, kind: ir.DataType, keep: Collection[str]
) -> None:
    """Turn a constant into the half type; what kept nodes read of it stays as it is."""
    kept = [use for use in value.uses() if use.node.name in keep]
    if kept and len(kept) == len(list(value.uses())):
        return
    assert value.const_value is not None
    exact = value.const_value.numpy()
    if kept:
        copy = add_constant(graph, f"{name}.float", exact)
        for use in kept:
            use.node.replace_input_with(use.idx, copy)
    value.const_value = ir.tensor(exact.astype(_NUMPY[kind]), dtype=kind, name=name)
    value.dtype = kind


def _cast_between(graph: ir.Graph, kind: ir.DataType, keep: Collection[str]) -> None:
    """A Cast wherever a tensor has the one type and its reader computes in the other."""
    casts: dict[tuple[str, ir.DataType], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        wanted = ir.DataType.FLOAT if node.name in keep else kind
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in {ir.DataType.FLOAT, kind}:
                continue
            if value.dtype != wanted:
                key = (str(value.name), wanted)
                if key not in casts:
                    casts[key] = _cast(graph, value, wanted)
                node.replace_input_with(index, casts[key])


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    short = "float" if to == ir.DataType.FLOAT else "half"
    name = f"{value.name}.to_{short}"
    cast = make_cast(value, to, name=name, output=f"{value.name}.{short}")
    insert_after(graph, value, cast)
    return cast.outputs[0]


def _cast_outputs(graph: ir.Graph, kind: ir.DataType) -> None:
    for index, value in enumerate(list(graph.outputs)):
        producer = value.producer()
        if producer is None or value.dtype != kind:
            continue
        name = str(value.name)
        cast = make_cast(value, ir.DataType.FLOAT, name=f"{name}.to_float", output=name)
        value.name = f"{name}.half"
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
