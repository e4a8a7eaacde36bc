"""FP16 and BF16 graphs: every floating-point constant and operation in the half type.

Inputs and outputs stay float32 (a Cast at each end). Nothing is kept in FP32 by a guess: a value
that the type cannot hold is reported by `overflowing`, by name, before anything is written.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optimizer.errors import GraphError

__all__ = ["overflowing", "to_half"]

_NUMPY = {
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
_NAMES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
BF16_OPSET = 22
"""Conv and pooling take bfloat16 from this operator set on."""


def overflowing(model: ir.Model, kind: ir.DataType) -> list[str]:
    """Names of constants that the type cannot hold."""
    limit = _LARGEST[kind]
    return [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT
        and value.const_value is not None
        and value.const_value.numpy().size
        and float(np.abs(value.const_value.numpy()).max()) > limit
    ]


def to_half(model: ir.Model, kind: ir.DataType) -> bool:
    """Convert all float32 constants and operations of a graph to FP16 or BF16, in place.

    Args:
        model: The graph; float32 or uint8 input, float32 output.
        kind: ``FLOAT16`` or ``BFLOAT16``.

    Returns:
        True.

    Raises:
        GraphError: A constant does not fit into the type; the message names it.
    """
    graph = model.graph
    too_large = overflowing(model, kind)
    if too_large:
        raise GraphError(
            f"{too_large[0]} has values that {_NAMES[kind].upper()} cannot hold",
            mend="--precision bf16, which has the range of FP32"
            if kind == ir.DataType.FLOAT16
            else None,
        )
    for name, value in list(graph.initializers.items()):
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            array = value.const_value.numpy().astype(_NUMPY[kind])
            value.const_value = ir.tensor(array, dtype=kind, name=name)
            value.dtype = kind
    for node in graph:
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", kind)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = kind
    _cast_inputs(graph, kind)
    _cast_outputs(graph, kind)
    model.metadata_props["resnet_opt.precision"] = _NAMES[kind]
    if kind == ir.DataType.BFLOAT16:
        graph.opset_imports[""] = max(graph.opset_imports.get("", 0), BF16_OPSET)
    return True


def _cast_inputs(graph: ir.Graph, kind: ir.DataType) -> None:
    for value in graph.inputs:
        if value.dtype != ir.DataType.FLOAT:
            continue
        uses = list(value.uses())
        cast = ir.node("Cast", [value], attributes={"to": kind}, name=f"{value.name}.to_half")
        cast.outputs[0].name = f"{value.name}.half"
        cast.outputs[0].dtype = kind
        cast.outputs[0].shape = value.shape
        graph.insert_before(graph[0], cast)
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast_outputs(graph: ir.Graph, kind: ir.DataType) -> None:
    for index, value in enumerate(list(graph.outputs)):
        producer = value.producer()
        if producer is None or value.dtype != kind:
            continue
        cast = ir.node(
            "Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{value.name}.to_float"
        )
        name = value.name
        value.name = f"{name}.half"
        cast.outputs[0].name = name
        cast.outputs[0].dtype = ir.DataType.FLOAT
        cast.outputs[0].shape = value.shape
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
