"""Which provider runs which node, as ONNX Runtime tells it, and what that says of precisions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.engines.providers.settings import Choice
from optimizer.engines.providers.table import CPU, PROVIDERS
from optimizer.engines.tensorrt.graph_check import check_graph
from optimizer.results import LayerInfo

__all__ = ["ASSIGNMENT_KEY", "assigned", "describe_partition", "graph_layers"]

ASSIGNMENT_KEY = "session.record_ep_graph_assignment_info"
"""Session setting that makes ONNX Runtime (1.24 and later) remember who took which node."""
_FLOATS = {"fp32", "fp16", "bf16"}


def assigned(session: Any) -> dict[str, str] | None:
    """The provider of each node, by the node's name; ``None`` if this version does not tell.

    The session must have been made with `ASSIGNMENT_KEY`.
    """
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    return {node.name: part.ep_name for part in tell() for node in part.get_nodes()}


def graph_layers(graph: Path, choice: Choice, owners: Mapping[str, str] | None) -> list[LayerInfo]:
    """The layers with weights of a graph, each with who runs it and in what it computes.

    A provider that works node by node computes in the types of the graph, except that a quantized
    convolution is one in floating point between its Q/DQ. Of a provider that compiles, only half
    types are known: it builds strongly typed networks, in which a half-precision node cannot
    become anything else. Whether it computes a Q/DQ node in INT8, or an FP32 node in TF32, it does
    not tell, and then the precision is ``unknown``.

    Args:
        graph: The ONNX file.
        choice: The provider, with its options.
        owners: What `assigned` found.

    Returns:
        A layer a node; ``tactic`` names the provider.

    Raises:
        GraphError: It is not lowered as TensorRT's rules say (UINT8, asymmetric, INT32 biases).
    """
    checked = check_graph(graph)
    registered = {p.registered: p for p in PROVIDERS.values()}
    layers = []
    for name, (given, result) in checked.weights.items():
        owner = None if owners is None else owners.get(name)
        provider = registered.get(owner) if owner is not None else None
        # Between Q/DQ, the type of the result is that of the arithmetic around it.
        quantized = given not in _FLOATS
        high = result if quantized else given
        if provider is None:
            precision = "unknown"
        elif provider is CPU:
            precision = "fp32"
        elif provider.typed_by_graph:
            tf32 = high == "fp32" and choice.options.get("use_tf32", "1") != "0"
            precision = "tf32" if tf32 else high
        else:
            precision = high if high != "fp32" and not quantized else "unknown"
        layers.append(
            LayerInfo(
                name=name,
                torch_names=[name],
                type="Gemm" if name in checked.gemms else "Conv",
                precision=precision,
                tactic=owner or "not told",
            )
        )
    return layers


def describe_partition(choice: Choice, layers: list[LayerInfo]) -> list[str]:
    """What a user must know of who runs what: one line a provider, and what is not told."""
    notes = []
    for registered in dict.fromkeys(str(layer.tactic) for layer in layers):
        owned = [layer.name for layer in layers if layer.tactic == registered]
        names = ", ".join(owned[:3]) + (f" and {len(owned) - 3} more" if len(owned) > 3 else "")
        if registered == "not told":
            notes.append(f"ONNX Runtime does not tell which provider runs {names}")
        elif registered == choice.provider.registered:
            notes.append(f"{registered} runs {len(owned)} of {len(layers)} layers with weights")
        else:
            notes.append(f"{registered} runs {names}, which {choice.provider.registered} left")
    if any(layer.precision == "unknown" and layer.tactic != "not told" for layer in layers):
        notes.append(
            f"{choice.provider.title} does not tell ONNX Runtime in what it computes: the audit "
            "cannot pass; --engine tensorrt or tensorrt-rtx tells every layer"
        )
    return notes
