"""Loads graphs in a normal form: constants are used initializers, not inputs; biases are not shared.

Other exporters list initializers as inputs (IR version 3) or keep constants as nodes, and
simplifiers merge equal biases; normalizing this does not change the results. Operator sets below 13
have no per-channel scales and are upgraded by ONNX's own converter.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from optimizer.errors import GraphError
from optimizer.graphs.editing import add_constant, fresh_name
from optimizer.graphs.onnx_files import open_onnx
from optimizer.graphs.topology import WEIGHTED

__all__ = ["load_graph", "tidy"]

_BIAS = 2
_PER_CHANNEL_OPSET = 13
_IR_VERSION = 8
"""Operator set 13 needs at least IR version 7; exporters have written 8 since 2021."""


def load_graph(path: Path) -> ir.Model:
    """Load a graph and tidy it; see `tidy`. Tensors without a type get one by shape inference.

    Raises:
        GraphError: As in `open_onnx`; or its operator set is below 13 and cannot be upgraded.
    """
    model = open_onnx(path, weights=False).to_ir()
    opsets = [
        model.graph.opset_imports.get(domain, _PER_CHANNEL_OPSET) for domain in ("", "ai.onnx")
    ]
    if min(opsets) < _PER_CHANNEL_OPSET:
        model = _upgrade_opset(path)
    tidy(model)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def _upgrade_opset(path: Path) -> ir.Model:
    from onnx import version_converter

    proto = open_onnx(path).proto
    versions = [entry for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}]
    opset = max(entry.version for entry in versions)
    for entry in versions:  # "" and "ai.onnx" name the same domain
        proto.opset_import.remove(entry)
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    try:
        model: ir.Model = ir.from_proto(
            version_converter.convert_version(proto, _PER_CHANNEL_OPSET)
        )
    except (RuntimeError, version_converter.ConvertError) as error:
        raise GraphError(
            f"{path.name} has opset {opset}, but per-channel INT8 needs {_PER_CHANNEL_OPSET}, and "
            f"upgrading it failed: {error}",
            hint="export it again with operator set 20",
        ) from error
    model.ir_version = max(model.ir_version or 0, _IR_VERSION)
    return model


def tidy(model: ir.Model) -> None:
    """Normalize how constants are stored, without changing the results."""
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    outputs = {id(value) for value in model.graph.outputs}
    for value in list(model.graph.initializers.values()):
        if not value.uses() and id(value) not in outputs:
            model.graph.initializers.pop(str(value.name))
    for value in list(model.graph.initializers.values()):
        users = [use.node for use in value.uses() if use.idx == _BIAS]
        for node in [node for node in users if node.op_type in WEIGHTED][1:]:
            assert value.const_value is not None
            name = fresh_name(f"{node.name}.own_bias", model.graph.initializers, "_")
            copy = add_constant(model.graph, name, value.const_value.numpy())
            node.replace_input_with(_BIAS, copy)
