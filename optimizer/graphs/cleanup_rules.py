"""Rules of the importing pass for nodes without effect and for other spellings of an operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.graphs.editing import bypass
from optimizer.graphs.rewriting import Rule, constant_of, only_reader, producer_of, replace_node

__all__ = ["CLEANUP_RULES"]

_NO_OPERATION = {"Identity", "Dropout"}


def _without_effect(node: ir.Node) -> bool | None:
    """Identity, Dropout at inference, a Cast to the same type, a Sum or Concat of one tensor."""
    source = node.inputs[0] if node.inputs else None
    if source is None or node.domain or any(list(v.uses()) for v in node.outputs[1:]):
        return None
    if any(v.is_graph_output() for v in node.outputs[1:]):
        return None
    # The output of the graph cannot be its input.
    if node.outputs[0].is_graph_output() and source.is_graph_input():
        return None
    same_type = node.op_type == "Cast" and node.attributes.get_int("to", 0) == source.dtype
    single = node.op_type in {"Sum", "Concat"} and len(node.inputs) == 1
    one_pixel = node.op_type == "AveragePool" and _is_one_pixel(node)
    return (node.op_type in _NO_OPERATION or same_type or single or one_pixel) or None


def _is_one_pixel(pool: ir.Node) -> bool:
    kernel = pool.attributes.get_ints("kernel_shape", ()) or ()
    strides = pool.attributes.get_ints("strides", ()) or ()
    pads = pool.attributes.get_ints("pads", ()) or ()
    return all(k == 1 for k in kernel) and all(s == 1 for s in strides) and not any(pads)


def _remove(graph: ir.Graph, node: ir.Node, _match: Any) -> None:
    node.resize_inputs(1)
    node.resize_outputs(1)
    bypass(graph, node)


def _sum_of_two(node: ir.Node) -> bool | None:
    return (node.op_type == "Sum" and not node.domain and len(node.inputs) == 2) or None


def _to_add(graph: ir.Graph, node: ir.Node, _match: Any) -> None:
    replace_node(graph, node, ir.node("Add", list(node.inputs), name=node.name))


def _is_relu(node: ir.Node) -> bool | None:
    """Clip from zero without an upper limit, or Max with zero."""
    if node.domain or len(node.inputs) < 2:
        return None
    if node.op_type == "Clip":
        low = constant_of(node.inputs[1])
        high = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        unlimited = len(node.inputs) < 3 or node.inputs[2] is None
        if high is not None:
            unlimited = bool(np.all(high >= np.finfo(np.float32).max))
        return (low is not None and float(low) == 0.0 and unlimited) or None
    if node.op_type == "Max" and len(node.inputs) == 2:
        zero = constant_of(node.inputs[1])
        return (zero is not None and zero.size == 1 and not zero.any()) or None
    return None


def _to_relu(graph: ir.Graph, node: ir.Node, _match: Any) -> None:
    replace_node(graph, node, ir.node("Relu", [node.inputs[0]], name=node.name))


def _inverse_transpose(node: ir.Node) -> ir.Value | None:
    """The tensor before a Transpose that this Transpose undoes."""
    if node.op_type != "Transpose" or node.outputs[0].is_graph_output():
        return None
    first = producer_of(node.inputs[0], "Transpose")
    if first is None:
        return None
    one, two = (n.attributes.get_ints("perm", ()) or () for n in (first, node))
    if len(one) != len(two) or [one[i] for i in two] != list(range(len(one))):
        return None
    return first.inputs[0]


def _skip_transposes(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    graph.remove(node, safe=True)
    if first is not None and not list(first.outputs[0].uses()):
        graph.remove(first, safe=True)


# --- padding --------------------------------------------------------------------------------------


def _explicit_pads(node: ir.Node) -> list[int] | None:
    """Pads of a node with ``auto_pad``, if the size of its input is known."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if node.domain or node.op_type not in {"Conv", "MaxPool", "AveragePool"} or mode == "NOTSET":
        return None
    kernel = node.attributes.get_ints("kernel_shape", None)
    if kernel is None:
        weight = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] else None
        kernel = None if weight is None else [d for d in list(weight)[2:] if isinstance(d, int)]
    if kernel is None:
        return None
    count = len(kernel)
    if mode == "VALID":
        return [0] * (2 * count)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    sizes = [d for d in list(shape or ())[2:] if isinstance(d, int)]
    if len(sizes) != count:
        return None
    strides = node.attributes.get_ints("strides", None) or [1] * count
    dilations = node.attributes.get_ints("dilations", None) or [1] * count
    before, after = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        extent = (k - 1) * dilation + 1
        total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return [*before, *after]


def _write_pads(_graph: ir.Graph, node: ir.Node, pads: list[int]) -> None:
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _zero_pads(node: ir.Node) -> list[int] | None:
    """Pads of a Pad of zeros on height and width whose readers can pad themselves."""
    if node.op_type != "Pad" or node.domain or node.outputs[0].is_graph_output():
        return None
    if node.attributes.get_string("mode", "constant") != "constant" or len(node.inputs) > 3:
        return None
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    value = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
    if pads is None or pads.size != 8 or value is None or value.any() or (pads < 0).any():
        return None
    numbers = [int(p) for p in pads.reshape(-1)]
    if any(numbers[i] for i in (0, 1, 4, 5)):
        return None
    reader = only_reader(node.outputs[0])
    inner = [*numbers[2:4], *numbers[6:8]]
    return inner if reader is not None and _can_pad(reader, node, inner) else None


def _can_pad(reader: ir.Node, pad: ir.Node, pads: list[int]) -> bool:
    if reader.op_type not in {"Conv", "MaxPool"} or reader.domain or reader.inputs[0] is None:
        return False
    if reader.inputs[0].producer() is not pad:
        return False
    if reader.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return False
    if reader.op_type == "Conv":
        return True
    # A pooling pads with minus infinity: the same for values of at least zero, if every window
    # holds a value.
    kernel = reader.attributes.get_ints("kernel_shape", ()) or ()
    fits = len(kernel) == 2 and all(p < kernel[i % 2] for i, p in enumerate(pads))
    return fits and producer_of(pad.inputs[0], "Relu") is not None


def _merge_pads(graph: ir.Graph, node: ir.Node, pads: list[int]) -> None:
    reader = only_reader(node.outputs[0])
    source = node.inputs[0]
    assert reader is not None
    assert source is not None
    own = list(reader.attributes.get_ints("pads", ()) or [0, 0, 0, 0])
    reader.attributes.pop("auto_pad", None)
    merged = [a + b for a, b in zip(own, pads, strict=True)]
    reader.attributes["pads"] = ir.AttrInt64s("pads", merged)
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    graph.remove(node, safe=True)


CLEANUP_RULES = (
    Rule("operation without effect removed", _without_effect, _remove),
    Rule("Sum of two tensors written as Add", _sum_of_two, _to_add),
    Rule("written as Relu", _is_relu, _to_relu),
    Rule("pair of inverse Transposes removed", _inverse_transpose, _skip_transposes),
    Rule("auto_pad written as pads", _explicit_pads, _write_pads),
    Rule("Pad merged into the layer after it", _zero_pads, _merge_pads),
)
