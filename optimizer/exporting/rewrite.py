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
    "use_global_average_pool",
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
