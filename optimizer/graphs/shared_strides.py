"""A rewriting rule: 1 x 1 convolutions with stride that read one tensor read every s-th pixel of it.

The first blocks of the stages of a ResNet v1 (Keras, Caffe, MXNet) have two convolutions 1 x 1 with
stride 2 on one tensor: the shortcut, and the first one of the branch. OpenVINO moves such strides
upwards itself, across the quantization, and leaves the convolutions around them in FP32.

Rule: let convolutions with kernel 1 x 1, stride s > 1 and no padding read one tensor ``x``. Then
``MaxPool(x, kernel 1, stride s)`` is inserted, and they read it with stride 1.

Proof: at output position (i, j) such a convolution reads only ``x[s i, s j]``. A maximum over one
value is that value, so the pooling's output at (i, j) is ``x[s i, s j]`` too. Both have
``floor((H - 1) / s) + 1`` rows. So every product and every sum is the same, and the result is equal bit
for bit.

Requires constants as initializers. Not handled: one convolution alone, which engines compute well.
"""

from __future__ import annotations

import onnx_ir as ir

from optimizer.graphs.editing import describe, fresh_name, insert_after

__all__ = ["move_strides_to_convolutions", "share_strides"]

_NO_STRIDE = (1, 1)
_SUFFIX = ".strided"


def share_strides(model: ir.Model) -> list[str]:
    """Apply the rule in place.

    Returns:
        The names of the tensors that are now read once.
    """
    graph = model.graph
    taken = {str(v.name) for node in graph for v in node.outputs} | {str(n.name) for n in graph}
    shared = []
    for value in _computed(model):
        for stride, readers in _strided_readers(value).items():
            if len(readers) < 2:
                continue
            name = fresh_name(f"{value.name}{_SUFFIX}", taken, "_")
            taken.add(name)
            pool = ir.node(
                "MaxPool",
                [value],
                attributes={"kernel_shape": [1, 1], "strides": list(stride)},
                name=name,
            )
            assert value.dtype is not None
            describe(pool.outputs[0], name, _strided_shape(value, stride), value.dtype)
            insert_after(graph, value, pool)
            for node in readers:
                node.replace_input_with(0, pool.outputs[0])
                node.attributes["strides"] = ir.AttrInt64s("strides", list(_NO_STRIDE))
            shared.append(str(value.name))
    return shared


def move_strides_to_convolutions(model: ir.Model) -> list[str]:
    """The inverse: remove such a pooling where only 1 x 1 convolutions without stride read it.

    Returns:
        The names of the tensors that the convolutions read now.
    """
    moved = []
    for pool in [node for node in model.graph if node.op_type == "MaxPool" and not node.domain]:
        kernel = tuple(pool.attributes.get_ints("kernel_shape", ()) or ())
        source, output = pool.inputs[0], pool.outputs[0]
        readers = [use.node for use in output.uses() if use.idx == 0]
        if kernel != (1, 1) or source is None or output.is_graph_output() or _pads(pool):
            continue
        stride = _strides(pool)
        plain = all(_is_pointwise(node) and _strides(node) == _NO_STRIDE for node in readers)
        if not readers or not plain or len(readers) != len(list(output.uses())):
            continue
        for node in readers:
            node.replace_input_with(0, source)
            node.attributes["strides"] = ir.AttrInt64s("strides", list(stride))
        model.graph.remove(pool, safe=True)
        moved.append(str(source.name))
    return moved


def _computed(model: ir.Model) -> list[ir.Value]:
    constants = model.graph.initializers
    inputs = [value for value in model.graph.inputs if value.name not in constants]
    return [*inputs, *(value for node in model.graph for value in node.outputs)]


def _strided_readers(value: ir.Value) -> dict[tuple[int, int], list[ir.Node]]:
    """The 1 x 1 convolutions that read a tensor with a stride, by the stride."""
    found: dict[tuple[int, int], list[ir.Node]] = {}
    for use in value.uses():
        if use.idx == 0 and _is_pointwise(use.node) and _strides(use.node) != _NO_STRIDE:
            found.setdefault(_strides(use.node), []).append(use.node)
    return found


def _is_pointwise(node: ir.Node) -> bool:
    """Whether a node is a 1 x 1 convolution over two dimensions that pads nothing.

    With ``auto_pad`` SAME, a kernel of 1 needs no padding either.
    """
    if node.op_type != "Conv" or node.domain:
        return False
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()) or ())
    weight = node.inputs[1]
    if not kernel and weight is not None and weight.shape is not None:
        kernel = tuple(side for side in list(weight.shape)[2:] if isinstance(side, int))
    return kernel == (1, 1) and not _pads(node)


def _pads(node: ir.Node) -> bool:
    return any(node.attributes.get_ints("pads", ()) or ())


def _strides(node: ir.Node) -> tuple[int, int]:
    first, second = node.attributes.get_ints("strides", None) or _NO_STRIDE
    return int(first), int(second)


def _strided_shape(value: ir.Value, stride: tuple[int, int]) -> ir.Shape | None:
    if value.shape is None or len(value.shape) != 4:
        return None
    batch, channels, *sides = value.shape
    reduced = [
        -(-side // step) if isinstance(side, int) else None
        for side, step in zip(sides, stride, strict=True)
    ]
    return ir.Shape([batch, channels, *reduced])
