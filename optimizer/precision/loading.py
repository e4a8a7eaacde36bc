"""Graphs as the passes want them: constants are initializers, no inputs, used, biases not shared.

Other exporters list initializers among the inputs (IR version 3), keep constants as nodes, and
simplifiers join equal biases; none of that changes what a graph computes.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from optimizer.precision.topology import WEIGHTED

__all__ = ["load_graph", "tidy"]

_BIAS = 2


def load_graph(path: Path) -> ir.Model:
    """Load a graph and tidy it; see `tidy`."""
    model = ir.load(path)
    tidy(model)
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
            name = f"{node.name}.own_bias"
            while name in model.graph.initializers:
                name += "_"
            own = ir.Value(
                name=name, shape=value.shape, type=value.type, const_value=value.const_value
            )
            model.graph.register_initializer(own)
            node.replace_input_with(_BIAS, own)
