"""Raising the operator set of a graph in memory, where its operators mean the same in the newer one.

FP16 scales of Q/DQ need operator set 19. A graph of an older set is raised where every operator has the
same definition in both sets, or is one of those whose newer definition only adds types or optional
settings.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from optimizer.errors import GraphError
from optimizer.graphs.onnx_files import open_onnx

__all__ = ["FP16_SCALES", "check_raisable", "raise_opset"]

FP16_SCALES = 19
"""The first operator set whose QuantizeLinear takes FP16 scales."""
_ONLY_ADDED = frozenset(
    {
        "Add", "AveragePool", "Cast", "Conv", "DequantizeLinear", "Flatten", "Gemm",
        "GlobalAveragePool", "MaxPool", "Mul", "QuantizeLinear", "Relu", "Reshape", "Sigmoid",
        "Sub", "Transpose",
    }
)  # fmt: skip
"""Operators whose definitions from set 13 on differ only by types and optional settings."""
_LEAST = 13


def raise_opset(model: ir.Model, least: int) -> None:
    """Raise the operator set to at least ``least``, in place.

    Raises:
        GraphError: An operator means something else in the newer set, or the set is below 13.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset >= least:
        return
    changed = _changed_operators(model, opset, least)
    if changed or opset < _LEAST:
        reason = f"{changed[0]} has changed since" if changed else "it is too old to be raised"
        raise GraphError(
            f"the graph has opset {opset}, but FP16 scales need {least}, and {reason}",
            hint="export it with --opset 20, or use --high-precision fp32",
        )
    model.graph.opset_imports[""] = least


def check_raisable(path: Path, least: int) -> None:
    """Refuse a graph whose operator set is too old and cannot be raised, before any work.

    Sets below 13 are upgraded when the graph is loaded (`optimizer.graphs.importing`), to 13.

    Raises:
        GraphError: As in `raise_opset`, or the file cannot be read.
    """
    model = open_onnx(path, weights=False).to_ir()
    opsets = model.graph.opset_imports
    opsets[""] = max(_LEAST, opsets.get("", opsets.get("ai.onnx", _LEAST)))
    raise_opset(model, least)


def _changed_operators(model: ir.Model, opset: int, least: int) -> list[str]:
    kinds = sorted({node.op_type for node in model.graph if not node.domain} - _ONLY_ADDED)
    return [kind for kind in kinds if _since(kind, opset) != _since(kind, least)]


def _since(kind: str, opset: int) -> int:
    if not onnx.defs.has(kind):
        return 0
    return int(onnx.defs.get_schema(kind, opset).since_version)
