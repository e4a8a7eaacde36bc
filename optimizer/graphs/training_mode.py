"""BatchNorm and Dropout that were exported in training mode.

In training mode BatchNorm uses the statistics of the batch, so an image's scores depend on the other
images, and Dropout is random. Exporters write it if the model was not switched to evaluation first.
"""

from __future__ import annotations

from typing import Any

from optimizer.errors import GraphError
from optimizer.graphs.rewriting import Change

__all__ = ["check_inference_mode", "switch_to_inference"]

_DROPOUT_FLAG_OPSET = 12
"""The first opset in which Dropout has a training flag; before, an attribute and mode of the runtime."""
_BATCHNORM_FLAG_OPSET = 14


def check_inference_mode(proto: Any, name: str) -> None:
    """Refuse a model with nodes in training mode.

    Raises:
        GraphError: Names the nodes.
    """
    found = _training_nodes(proto)
    if not found:
        return
    kinds = ", ".join(
        f"{len(nodes)} {kind} (first: {_label(nodes[0])})"
        for kind, nodes in _by_kind(found).items()
    )
    raise GraphError(
        f"{name} has nodes in training mode: {kinds}. The scores of an image then depend on the "
        "batch or on chance",
        hint="export it again after model.eval(), or import it with --inference-mode, which uses "
        "the running statistics",
    )


def switch_to_inference(proto: Any) -> list[Change]:
    """Switch nodes in training mode to inference, in place."""
    changes = []
    for node in _training_nodes(proto):
        changes.append(Change(f"{node.op_type} switched to inference mode", _label(node)))
        if node.op_type == "Dropout":
            del node.input[1:]  # ratio and training flag
        else:
            del node.output[1:]
        for attribute in [a for a in node.attribute if a.name == "training_mode"]:
            node.attribute.remove(attribute)
    return changes


def _training_nodes(proto: Any) -> list[Any]:
    opset = max((e.version for e in proto.opset_import if e.domain in {"", "ai.onnx"}), default=0)
    flags = _true_constants(proto.graph)
    found = []
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            flagged = any(a.name == "training_mode" and a.i for a in node.attribute)
            # Older operator sets have no flag: mean and variance among the outputs mean training.
            listed = opset < _BATCHNORM_FLAG_OPSET and any(node.output[1:])
            if flagged or listed:
                found.append(node)
        elif node.op_type == "Dropout" and opset >= _DROPOUT_FLAG_OPSET:
            found += [node] if len(node.input) > 2 and node.input[2] in flags else []
    return found


def _true_constants(graph: Any) -> set[str]:
    from onnx import numpy_helper

    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    tensors += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    boolean = 9  # TensorProto.BOOL
    return {
        name
        for name, tensor in tensors
        if tensor.data_type == boolean and numpy_helper.to_array(tensor).all()
    }


def _by_kind(nodes: list[Any]) -> dict[str, list[Any]]:
    kinds: dict[str, list[Any]] = {}
    for node in nodes:
        kinds.setdefault(node.op_type, []).append(node)
    return kinds


def _label(node: Any) -> str:
    return str(node.name or node.output[0])
