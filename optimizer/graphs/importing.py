"""Graphs as the passes want them: constants are initializers, no inputs, used, biases not shared.

Other exporters list initializers among the inputs (IR version 3), keep constants as nodes, and
simplifiers join equal biases; none of that changes what a graph computes. Older operator sets than 13
have no scale per channel and are raised by ONNX's own converter.
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
_PER_CHANNEL = 13
_IR_VERSION = 8
"""The least that goes with operator set 13 is 7; 8 is what exporters have written since 2021."""


def load_graph(path: Path) -> ir.Model:
    """Load a graph and tidy it; see `tidy`.

    Raises:
        GraphError: As in `open_onnx`; or its operator set is older than 13 and cannot be raised.
    """
    model = open_onnx(path, weights=False).to_ir()
    known = [model.graph.opset_imports.get(domain, _PER_CHANNEL) for domain in ("", "ai.onnx")]
    if min(known) < _PER_CHANNEL:
        model = _raised(path)
    tidy(model)
    return model


def _raised(path: Path) -> ir.Model:
    from onnx import version_converter

    proto = open_onnx(path).proto
    versions = [entry for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}]
    opset = max(entry.version for entry in versions)
    for entry in versions:  # two names of one domain
        proto.opset_import.remove(entry)
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    try:
        model: ir.Model = ir.from_proto(version_converter.convert_version(proto, _PER_CHANNEL))
    except (RuntimeError, version_converter.ConvertError) as error:
        raise GraphError(
            f"{path.name} has operator set {opset}, INT8 by channel needs {_PER_CHANNEL}, "
            f"and it cannot be raised: {error}",
            hint="export it again, with --opset 20",
        ) from error
    model.ir_version = max(model.ir_version or 0, _IR_VERSION)
    return model


def tidy(model: ir.Model) -> None:
    """Change how constants are held, and nothing of what is computed."""
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
            own = add_constant(model.graph, name, value.const_value.numpy())
            node.replace_input_with(_BIAS, own)
