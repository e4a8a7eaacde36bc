"""The importing pass: a foreign ONNX file becomes a graph as `resnet-opt export` writes it.

`open_source` gives the file plain ends; `STEPS` then rewrite what is in between, without changing what
it computes. A step is a list of rules (`rewriting`) or work on the whole graph. To take another
dress of a network, add a file with rules or a step and list it in `STEPS`.

Not handled: operators of other domains, and control flow; they stay as they are and in high
precision.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from optimizer.errors import GraphError
from optimizer.graphs.channel_rules import CHANNEL_RULES
from optimizer.graphs.cleanup_rules import CLEANUP_RULES
from optimizer.graphs.editing import fresh_name
from optimizer.graphs.layer_rules import LAYER_RULES, set_constant
from optimizer.graphs.rewriting import Change, Step, constant_of, rewriting
from optimizer.graphs.source_ends import SourceGraph
from optimizer.graphs.topology import WEIGHTED
from optimizer.graphs.widening import widen

__all__ = ["PRODUCER", "REVISION", "STEPS", "ImportedGraph", "import_graph", "infer_shapes"]

REVISION = 1
"""Raised when a rule changes what is written, so that cached graphs are written again."""
PRODUCER = "resnet-opt"
"""Producer name of graphs from `resnet-opt export` and of imported ones, which need no import."""

_OPSET = 20
"""As `resnet-opt export` writes; FP8 and FP16 scales need 19."""
_LEAST_OPSET = 13
"""The first with per-channel scales."""
_LARGEST_FOLDED = 2**28
"""Values; larger computed constants stay computed."""


@dataclass(frozen=True)
class ImportedGraph:
    """A graph after the importing pass.

    Attributes:
        model: The graph: FP32, one input, one output, opset 13 to 20 or newer if the file is.
        changes: Everything in which it differs from the file, in order.
    """

    model: ir.Model
    changes: list[Change]


def import_graph(source: SourceGraph) -> ImportedGraph:
    """Run the importing pass over a source.

    Args:
        source: From `open_source`; its model is not modified.

    Raises:
        GraphError: The operator set cannot be upgraded, or a constant exceeds the range of FP32.
    """
    changes = list(source.changes)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    changes += widen(proto, source.path.name)
    proto, upgraded = _upgraded(proto, source.path.name)
    changes += upgraded
    model: ir.Model = ir.from_proto(proto)
    for step in STEPS:
        changes += step.run(model)
    return ImportedGraph(model, changes)


def _upgraded(proto: Any, name: str) -> tuple[Any, list[Change]]:
    """The model in a current operator set."""
    from onnx import version_converter

    versions = [entry for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}]
    opset = max((entry.version for entry in versions), default=_OPSET)
    if opset >= _OPSET and len(versions) == 1 and versions[0].domain == "":
        return proto, []
    for entry in versions:  # "" and "ai.onnx" name the same domain
        proto.opset_import.remove(entry)
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    if opset >= _OPSET:
        return proto, []
    failure: Exception | None = None
    for target in (_OPSET, _LEAST_OPSET):
        if target <= opset:
            break
        try:
            converted = version_converter.convert_version(proto, target)
        except (RuntimeError, version_converter.ConvertError) as error:
            failure = failure or error
            continue
        converted.ir_version = onnx.helper.find_min_ir_version_for(converted.opset_import, True)
        return converted, [Change(f"opset {opset} upgraded to {target}", "")]
    if opset >= _LEAST_OPSET:
        return proto, []  # new enough for everything but FP8
    raise GraphError(
        f"{name} has opset {opset}, but per-channel INT8 needs {_LEAST_OPSET}, and upgrading it "
        f"failed: {failure}",
        hint=f"export it with opset {_OPSET}",
    ) from failure


# --- steps on the whole graph ---------------------------------------------------------------------


def _lift(model: ir.Model) -> list[Change]:
    """Constant nodes become initializers."""
    constants = [node for node in model.graph if node.op_type == "Constant"]
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    return [
        Change("Constant written as an initializer", node.name or str(node.outputs[0].name))
        for node in constants
    ]


def _fold_constants(model: ir.Model) -> list[Change]:
    """Compute what depends on constants only: weights, shapes and biases.

    Source: the partial evaluation of ``onnxscript.optimizer``, which also knows symbolic shapes.
    """
    from onnxscript.optimizer import fold_constants

    before = {id(node): node for node in model.graph}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        fold_constants(
            model,
            input_size_limit=_LARGEST_FOLDED,
            output_size_limit=_LARGEST_FOLDED,
            onnx_shape_inference=True,
        )
    finally:
        logging.disable(level)
    _lift(model)
    passes.RemoveUnusedNodesPass()(model)
    remaining = {id(node) for node in model.graph}
    return [
        Change("constants computed", node.name or node.op_type)
        for key, node in before.items()
        if key not in remaining
    ]


def infer_shapes(model: ir.Model) -> list[Change]:
    """Types and shapes of all tensors, which later passes rely on."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            array = value.const_value.numpy()
            value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)
    return []


def _own_constants(model: ir.Model) -> list[Change]:
    """Give each layer weights and a bias of its own, because scales and biases will differ."""
    changes, seen = [], set()
    for node in model.graph:
        if node.op_type not in WEIGHTED or node.domain:
            continue
        for index, role in ((1, "weight"), (2, "bias")):
            value = node.inputs[index] if len(node.inputs) > index else None
            array = constant_of(value)
            if value is None or array is None:
                continue
            if id(value) in seen:
                changes.append(Change(f"shared {role} copied", node.name or str(value.name)))
                set_constant(model.graph, node, index, array, f"{node.name}.own_{role}")
            seen.add(id(node.inputs[index]))
    return changes


def _add_biases(model: ir.Model) -> list[Change]:
    """Add a zero bias to layers without one: bias correction writes into it."""
    changes = []
    for node in model.graph:
        has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        if node.op_type not in WEIGHTED or node.domain or has_bias:
            continue
        weight = constant_of(node.inputs[1])
        if weight is None:
            continue
        columns = node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)
        zeros = np.zeros(weight.shape[1 if columns else 0], np.float32)
        set_constant(model.graph, node, 2, zeros, f"{node.name}.bias")
        changes.append(Change("bias of zeros added", str(node.name)))
    return changes


_WEIGHT_NAME = re.compile(r"^(.+?)[._/](weight|kernel|w)(:0|/read|/ReadVariableOp(:0)?)?$")


def _name_nodes(model: ir.Model) -> list[Change]:
    """Give every node a name of its own; layers are named after their weight where that is possible."""
    changes = []
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for node in model.graph:
        old = node.name or ""
        name = _module_of(node) or old
        if not name:
            kind = node.op_type.lower()
            counts[kind] = counts.get(kind, 0) + 1
            name = f"{kind}_{counts[kind]}"
        unique, count = name, 0
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        if unique != old:
            what = "node without a name named" if not old else "node renamed"
            changes.append(Change(what, unique))
            node.name = unique
    return changes


def _module_of(node: ir.Node) -> str:
    """The name of a layer's module, from the name of its weight; empty if it does not show."""
    weight = node.inputs[1] if node.op_type in WEIGHTED and not node.domain else None
    if weight is None or constant_of(weight) is None:
        return ""
    text = str(weight.name)
    match = _WEIGHT_NAME.match(text.removesuffix(".transposed"))
    if match is None:
        return ""
    # A name in the file that already says as much is kept: users know their layers by it.
    return "" if node.name and not _is_counted(node.name) else match[1]


def _is_counted(name: str) -> bool:
    """Whether an exporter made the name up: ``Conv_12``, ``node_conv2d_3``, ``n4``."""
    return re.fullmatch(r"(node_|/)?[A-Za-z]\w*?_?\d+", name) is not None


def _drop_unused(model: ir.Model) -> list[Change]:
    """Nodes and constants that only a replaced operation read."""
    passes.RemoveUnusedNodesPass()(model)
    outputs = {id(value) for value in model.graph.outputs}
    for value in list(model.graph.initializers.values()):
        if not list(value.uses()) and id(value) not in outputs:
            model.graph.initializers.pop(str(value.name))
    return []


def _tensor_names(model: ir.Model) -> list[Change]:
    """Tensors that a step created without a name."""
    taken = {str(v.name) for node in model.graph for v in node.outputs if v.name}
    for node in model.graph:
        for value in node.outputs:
            if not value.name:
                value.name = fresh_name(f"{node.name}.output", taken, "_")
                taken.add(value.name)
    return []


def _whole(name: str, run: Callable[[ir.Model], list[Change]]) -> Step:
    return Step(name, run)


_RULES = rewriting("rewrite", (*CLEANUP_RULES, *LAYER_RULES, *CHANNEL_RULES))

STEPS: tuple[Step, ...] = (
    _whole("lift constants", _lift),
    _whole("fold constants", _fold_constants),
    _whole("infer shapes", infer_shapes),
    _RULES,
    _whole("infer shapes", infer_shapes),
    _RULES,
    _whole("own constants", _own_constants),
    _whole("name nodes", _name_nodes),
    _whole("add biases", _add_biases),
    _whole("drop unused", _drop_unused),
    _whole("name tensors", _tensor_names),
    _whole("infer shapes", infer_shapes),
)
"""The importing pass, in order. Rules of further files belong into `_RULES` or into a step here."""
