"""Half-precision graphs computed as written on a CPU that has no half-precision kernels.

ONNX Runtime's CPU provider computes FP16 nodes in FP32: it inserts Casts around each and removes them
again in pairs, so that FP16 tensors inside a graph are never rounded and never overflow. It has no
BF16 convolution at all. `round_as_written` writes the rounding into the graph instead: each node reads
its half inputs as FP32 and writes its half outputs through a Cast, which ONNX Runtime keeps.

Emulated: the value of every half tensor, rounded to nearest even once, with infinities where the
type overflows; half constants. Not emulated: the order and precision of sums inside a node. A kernel
that accumulates in FP16 may round and overflow earlier; one that fuses nodes does not round between
them. Source of the types: IEEE 754-2019, binary16; BF16 is binary32 without its last 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.editing import insert_after, make_cast
from optimizer.graphs.onnx_files import open_onnx
from optimizer.graphs.taps import tapped

__all__ = ["computed_as_written", "first_overflow", "round_as_written"]

Array = NDArray[Any]
HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_NAMES = {ir.DataType.FLOAT16: "FP16", ir.DataType.BFLOAT16: "BF16"}


def computed_as_written(graph: Path | Any) -> Any | None:
    """A graph with half tensors in a form that a CPU computes as written.

    Args:
        graph: The ONNX file, or an `onnx.ModelProto` with its weights, which is not modified.

    Returns:
        An `onnx.ModelProto` whose tensors have the names of the file; ``None`` if the file has no
        half tensor that a node computes.

    Raises:
        GraphError: The file cannot be read.
    """
    import onnx

    proto = open_onnx(graph).proto if isinstance(graph, Path) else graph
    # Without shape inference, untyped values would not be recognized as half.
    model: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    return ir.to_proto(model) if round_as_written(model) else None


def round_as_written(model: ir.Model) -> bool:
    """Replace half arithmetic with FP32 arithmetic whose results are rounded, in place.

    Every node except Cast reads half inputs as FP32, and writes half outputs through a Cast. Tensors
    keep their names and values. Every tensor must have a type.

    Returns:
        Whether anything was replaced.
    """
    graph = model.graph
    wide: dict[ir.Value, ir.Value] = {}
    changed = _widen_constants(graph)
    for node in [n for n in graph if n.op_type != "Cast"]:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in HALF_TYPES:
                continue
            if value not in wide:
                name = f"{value.name}.fp32"
                cast = make_cast(value, ir.DataType.FLOAT, name=f"{name}.cast", output=name)
                insert_after(graph, value, cast)
                wide[value] = cast.outputs[0]
            node.replace_input_with(index, wide[value])
            changed = True
        for value in node.outputs:
            if value.dtype in HALF_TYPES:
                _round(graph, node, value)
                changed = True
    return changed


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Make a node write FP32, and a Cast after it the rounded tensor with the old name."""
    uses, name, kind = list(value.uses()), str(value.name), value.dtype
    assert kind is not None
    position = next((i for i, output in enumerate(graph.outputs) if output is value), None)
    value.dtype, value.name = ir.DataType.FLOAT, f"{name}.exact"
    cast = make_cast(value, kind, name=f"{name}.cast", output=name)
    graph.insert_after(node, cast)
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    if position is not None:
        graph.outputs[position] = cast.outputs[0]


def _widen_constants(graph: ir.Graph) -> bool:
    """Store half constants in FP32, with the same values: a Cast would run for every batch."""
    changed = False
    for name, value in graph.initializers.items():
        readers = {use.node.op_type for use in value.uses()}
        if value.dtype in HALF_TYPES and value.const_value is not None and "Cast" not in readers:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=name)
            value.dtype = ir.DataType.FLOAT
            changed = True
    return changed


def first_overflow(model: Any, images: Array) -> str | None:
    """The first tensor, in graph order, that overflows its half type on some images.

    Args:
        model: From `computed_as_written`.
        images: A batch in the graph's input format; a few images are enough.

    Returns:
        For example ``layer4.0.add exceeds FP16 (65,504): 131,072``; ``None`` if none does.
    """
    import onnx

    kinds = {int(kind): name for kind, name in _NAMES.items()}
    rounded = {
        node.output[0]: (node.input[0], kinds[attribute.i])
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to" and attribute.i in kinds
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    run: Callable[[Array], Mapping[str, Array]] = tapped(
        copy, [exact for exact, _ in rounded.values()]
    )
    values = run(images)
    for name, (exact, title) in rounded.items():
        largest = float(np.abs(values[exact].astype(np.float64)).max(initial=0.0))
        limit = {"FP16": 65504.0, "BF16": 3.3895313892515355e38}[title]
        if not largest <= limit:
            return f"{name} reaches {largest:,.0f}, above the {title} maximum of {limit:,.0f}"
    return None
