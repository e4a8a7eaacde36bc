"""Which provider runs each node, as ONNX Runtime reports it, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.engines.providers.settings import Choice
from optimizer.engines.providers.table import CPU, PROVIDERS
from optimizer.engines.tensorrt.graph_check import check_graph
from optimizer.results import LayerInfo

__all__ = ["ASSIGNMENT_KEY", "describe_partition", "graph_layers", "node_providers"]

ASSIGNMENT_KEY = "session.record_ep_graph_assignment_info"
"""Session setting that makes ONNX Runtime (1.24 and later) record the provider of each node."""
_FLOATS = {"fp32", "fp16", "bf16"}
_NOT_REPORTED = "not reported"


def node_providers(session: Any) -> dict[str, str] | None:
    """The provider of each node by node name; ``None`` if this version does not report it.

    The session must have been created with `ASSIGNMENT_KEY`.
    """
    assignment = getattr(session, "get_provider_graph_assignment_info", None)
    if assignment is None:
        return None
    return {node.name: part.ep_name for part in assignment() for node in part.get_nodes()}


def graph_layers(graph: Path, choice: Choice, owners: Mapping[str, str] | None) -> list[LayerInfo]:
    """The layers with weights of a graph, with the provider and precision of each.

    A provider that works node by node computes in the types of the graph, but a quantized
    convolution runs in floating point between its Q/DQ nodes. A provider that compiles builds
    strongly typed networks, in which a half-precision node stays half precision. It does not report
    whether a Q/DQ node runs in INT8 or an FP32 node in TF32; their precision is ``unknown``.

    Args:
        graph: The ONNX file.
        choice: The provider with its options.
        owners: The result of `node_providers`.

    Returns:
        One layer per node; ``tactic`` names the provider.

    Raises:
        GraphError: The graph is not quantized by TensorRT's rules (UINT8, asymmetric, INT32 biases).
    """
    checked = check_graph(graph)
    registered = {p.registered: p for p in PROVIDERS.values()}
    layers = []
    for name, (given, result) in checked.weights.items():
        owner = None if owners is None else owners.get(name)
        provider = registered.get(owner) if owner is not None else None
        # Between Q/DQ nodes, the arithmetic has the type of the result.
        quantized = given not in _FLOATS
        float_type = result if quantized else given
        if provider is None:
            precision = "unknown"
        elif provider is CPU:
            precision = "fp32"
        elif provider.typed_by_graph:
            tf32 = float_type == "fp32" and choice.options.get("use_tf32", "1") != "0"
            precision = "tf32" if tf32 else float_type
        else:
            precision = float_type if float_type != "fp32" and not quantized else "unknown"
        layers.append(
            LayerInfo(
                name=name,
                torch_names=[name],
                type="Gemm" if name in checked.gemms else "Conv",
                precision=precision,
                tactic=owner or _NOT_REPORTED,
            )
        )
    return layers


def describe_partition(choice: Choice, layers: list[LayerInfo]) -> list[str]:
    """Notes for the user: one line per provider, and what is not reported."""
    notes = []
    for registered in dict.fromkeys(str(layer.tactic) for layer in layers):
        owned = [layer.name for layer in layers if layer.tactic == registered]
        names = ", ".join(owned[:3]) + (f" and {len(owned) - 3} more" if len(owned) > 3 else "")
        if registered == _NOT_REPORTED:
            notes.append(f"ONNX Runtime does not report which provider runs {names}")
        elif registered == choice.provider.registered:
            notes.append(f"{registered} runs {len(owned)} of {len(layers)} layers with weights")
        else:
            notes.append(
                f"{registered} runs {names}, which {choice.provider.registered} does not support"
            )
    if any(layer.precision == "unknown" and layer.tactic != _NOT_REPORTED for layer in layers):
        notes.append(
            f"{choice.provider.title} does not report precisions to ONNX Runtime: the audit "
            "cannot pass; --engine tensorrt or tensorrt-rtx reports every layer"
        )
    return notes
