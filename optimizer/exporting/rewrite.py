"""Passes over a newly exported graph: PyTorch's names and one canonical form per operation.

Each pass modifies an `onnx_ir.Model` in place and returns whether it changed anything.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.graphs.editing import add_constant

__all__ = [
    "add_missing_biases",
    "drop_exporter_metadata",
    "drop_unused_constants",
    "name_biases",
    "name_by_module",
    "use_constant_shapes",
    "use_global_average_pool",
    "use_scales_of_resizes",
]

_SCOPES = "pkg.torch.onnx.name_scopes"


def use_global_average_pool(model: ir.Model) -> bool:
    """Replace ``ReduceMean`` + ``Reshape`` by ``GlobalAveragePool`` + ``Flatten``.

    Matches ``ReduceMean`` over the last two axes of a 4-D tensor followed by the ``Reshape`` that
    drops them (torch's export of ``AdaptiveAvgPool2d(1)`` + ``flatten``). Quantizers and engines
    recognize the pooling operator, and the reshape's computed shape hides the batch dimension.
    Other axes, and a mean with a second consumer, are left unchanged.
    """
    changed = False
    graph = model.graph
    for mean in [node for node in graph if node.op_type == "ReduceMean"]:
        source, axes = mean.inputs[0], mean.inputs[1] if len(mean.inputs) > 1 else None
        if source is None or source.shape is None or axes is None or axes.const_value is None:
            continue
        rank = len(source.shape)
        reduced = sorted(int(a) % rank for a in np.atleast_1d(axes.const_value.numpy()))
        users = [user.node for user in mean.outputs[0].uses()]
        if rank != 4 or reduced != [2, 3] or len(users) != 1 or users[0].op_type != "Reshape":
            continue
        reshape = users[0]
        pool = ir.node("GlobalAveragePool", [source])
        flat = ir.node("Flatten", [pool.outputs[0]], attributes={"axis": 1})
        for new, old in ((pool, mean), (flat, reshape)):
            new.metadata_props.update(old.metadata_props)
            new.outputs[0].type = old.outputs[0].type
        batch, channels = source.shape[0], source.shape[1]
        pool.outputs[0].shape = ir.Shape([batch, channels, 1, 1])
        flat.outputs[0].shape = ir.Shape([batch, channels])
        graph.insert_before(mean, [pool, flat])
        ir.convenience.replace_all_uses_with(reshape.outputs[0], flat.outputs[0])
        graph.remove([reshape, mean], safe=True)
        changed = True
    return changed


def use_constant_shapes(model: ir.Model) -> bool:
    """Replace the computed shape of a ``Reshape`` by a constant if only the batch is unknown.

    The exporter computes shapes from the batch size. With 0 the first dimension is copied from the
    input instead, so that passes and engines see the other dimensions. Reshapes that change the first
    dimension are left unchanged.
    """
    changed = False
    for node in [node for node in model.graph if node.op_type == "Reshape"]:
        source, shape = node.inputs[0], node.inputs[1]
        if source is None or shape is None or shape.const_value is not None:
            continue
        result = _wanted_shape(node, shape)
        if result is None:
            continue
        first, *rest = result
        if first != _first_dimension(source) or not all(isinstance(size, int) for size in rest):
            continue
        constant = add_constant(
            model.graph, f"{node.outputs[0].name}.shape", np.array([0, *rest], np.int64)
        )
        node.replace_input_with(1, constant)
        node.attributes.pop("allowzero", None)
        node.outputs[0].shape = ir.Shape(result)
        changed = True
    return changed and remove_unused_nodes(model)


def _wanted_shape(node: ir.Node, shape: ir.Value) -> ir.Shape | None:
    """The shape of a Reshape's output; if it copies another tensor's shape, that one."""
    copied = shape.producer()
    if copied is None or copied.op_type != "Shape" or copied.outputs[0].shape != ir.Shape([4]):
        return node.outputs[0].shape
    return None if copied.inputs[0] is None else copied.inputs[0].shape


def _first_dimension(value: ir.Value) -> Any:
    """The first dimension of a tensor, also behind a normalization, which keeps it."""
    if value.shape is not None:
        return value.shape[0]
    node = value.producer()
    if node is None or node.op_type != "InstanceNormalization" or node.inputs[0] is None:
        return None
    return _first_dimension(node.inputs[0])


def remove_unused_nodes(model: ir.Model) -> bool:
    """Remove nodes whose outputs nothing reads; returns True."""
    outputs = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            model.graph.remove(node, safe=True)
    return True


def use_scales_of_resizes(model: ir.Model) -> bool:
    """Give each ``Resize`` whole factors instead of computed sizes where both describe the same.

    Feature pyramids enlarge a level to the size of the next one. If that is a whole multiple, a
    constant factor is what engines can fuse; other sizes become constants if they are known.
    """
    changed = False
    for node in [node for node in model.graph if node.op_type == "Resize"]:
        if len(node.inputs) < 4 or node.inputs[3] is None:
            continue
        source, result = node.inputs[0], node.outputs[0].shape
        if source is None or source.shape is None or result is None or len(result) != 4:
            continue
        before, after = list(source.shape)[2:], list(result)[2:]
        factors = [
            new // old
            for new, old in zip(after, before, strict=True)
            if isinstance(new, int) and isinstance(old, int) and new % old == 0
        ]
        if len(factors) < len(after):
            continue
        scales = np.array([1, 1, *factors], np.float32)
        constant = add_constant(model.graph, f"{node.outputs[0].name}.scales", scales)
        node.replace_input_with(2, constant)
        node.replace_input_with(3, None)
        node.resize_inputs(3)
        changed = True
    return changed and remove_unused_nodes(model)


def name_by_module(model: ir.Model) -> bool:
    """Name nodes, tensors and initializers after the PyTorch module they come from.

    A node with a weight is named after the weight (``layer1.0.conv2``); any other node after the
    deepest module in the exporter's metadata, plus the operation if it is written inline
    (``layer1.0.add``). A module called several times gets ``_1``, ``_2`` …. A node's output has the
    node's name, so that tensors, engine layers and modules have the same names. Graph inputs and
    outputs keep their names.
    """
    taken: set[str] = set()
    outputs = set(model.graph.outputs)
    for node in model.graph:
        name = _module_of(node)
        unique, count = name, 0
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        node.name = unique
        for value in node.outputs:
            if value not in outputs:
                value.name = unique
    return True


_INLINE = {"Add": "add", "MaxPool": "maxpool", "GlobalAveragePool": "avgpool", "Flatten": "flatten"}


def _module_of(node: ir.Node) -> str:
    for value in node.inputs[1:2]:
        if (
            value is not None
            and value.const_value is not None
            and (value.name or "").endswith(".weight")
        ):
            return str(value.name)[: -len(".weight")]
    scopes = [str(s) for s in _scopes(node) if s]
    modules, inline = scopes[:-1], node.op_type.lower()
    deepest = modules[-1] if modules else ""
    if node.op_type == "Relu" and deepest.rsplit(".", 1)[-1].startswith(("relu", "act")):
        return deepest
    if node.op_type in _INLINE:
        inline = _INLINE[node.op_type]
        if deepest.rsplit(".", 1)[-1] == inline:
            return deepest
        if node.op_type != "Add":
            return deepest if node.op_type == "MaxPool" and deepest else inline
    return f"{deepest}.{inline}" if deepest else inline


def _scopes(node: ir.Node) -> list[Any]:
    raw = node.metadata_props.get(_SCOPES)
    if raw is None:
        return []
    parsed = ast.literal_eval(raw)
    return parsed if isinstance(parsed, list) else []


def add_missing_biases(model: ir.Model) -> bool:
    """Add a zero bias to every convolution and fully connected layer without one.

    Later passes correct biases and can rely on them being present.
    """
    changed = False
    for node in model.graph:
        if node.op_type not in {"Conv", "Gemm"} or len(node.inputs) > 2:
            continue
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        data = weight.const_value.numpy()
        channels = data.shape[0] if node.op_type == "Conv" else _gemm_outputs(node, data.shape)
        bias = add_constant(model.graph, f"{node.name}.bias", np.zeros(channels, np.float32))
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        changed = True
    return changed


def _gemm_outputs(node: ir.Node, shape: tuple[int, ...]) -> int:
    transposed = node.attributes.get_int("transB", 0)
    return shape[0] if transposed else shape[1]


def name_biases(model: ir.Model) -> bool:
    """Name every bias after its layer (the exporter names folded ones after the BatchNorm)."""
    changed = False
    for node in model.graph:
        if node.op_type in {"Conv", "Gemm"} and len(node.inputs) > 2:
            bias = node.inputs[2]
            if bias is not None and bias.name != f"{node.name}.bias":
                bias.name = f"{node.name}.bias"
                changed = True
    return changed


def drop_unused_constants(model: ir.Model) -> bool:
    """Remove initializers that no node reads (axes and shapes of replaced operations)."""
    unused = [name for name, value in model.graph.initializers.items() if not value.uses()]
    for name in unused:
        model.graph.initializers.pop(name)
    return bool(unused)


def drop_exporter_metadata(model: ir.Model) -> bool:
    """Remove the exporter's metadata, whose stack traces contain local paths."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.functions.clear()
    return True
