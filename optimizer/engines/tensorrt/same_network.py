"""Checks that two ONNX files are the same network with different weights, as a refit requires.

A refit replaces weights by name in compiled kernels. It changes no shape, type or operator. Scales
must be equal too: those of activations were compiled into the neighbouring kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.errors import GraphError
from optimizer.graphs.onnx_files import open_onnx

__all__ = ["check_same_network", "check_same_weights"]


def check_same_network(old: Path, new: Path) -> None:
    """Compare two graphs, except for their weights.

    Args:
        old: The graph an engine was built from.
        new: The graph with the new weights.

    Raises:
        GraphError: They are different networks; the message names the first difference.
    """
    before, after = (open_onnx(path, weights=False).proto.graph for path in (old, new))
    difference = (
        _value_difference(before, after)
        or _node_difference(before, after)
        or _weight_difference(before, after)
    )
    if difference is not None:
        raise GraphError(
            f"{new.name} is not the network of {old.name}: {difference}",
            hint="use the same architecture, classes, image size and precision, or build a new engine",
        )
    # Scales and zero points are small enough that they are never stored as external data.
    scale = _scale_difference(before, after)
    if scale is not None:
        raise GraphError(
            f"{new.name} has a different {scale} than {old.name}, which a refit cannot replace",
            hint="build an engine from it: resnet-opt build",
        )


def check_same_weights(old: Path, new: Path) -> None:
    """Compare the weights of two graphs of the same network, bit by bit.

    Args:
        old: The graph an engine was built from.
        new: The graph with the new weights.

    Raises:
        GraphError: They differ; the message names the first difference.
    """
    import onnx

    before, after = (
        {t.name: onnx.numpy_helper.to_array(t, str(path.parent)) for t in graph.initializer}
        for path, graph in (
            (path, open_onnx(path, weights=False).proto.graph) for path in (old, new)
        )
    )
    for name, values in after.items():
        if values.tobytes() != before[name].tobytes():
            raise GraphError(
                f"{new.name} has a different {name} than {old.name}, and an engine built with only "
                "--strip-weights accepts only the weights it was compiled with",
                hint="build it with --strip-weights --refittable to allow other weights",
            )


def _value_difference(before: Any, after: Any) -> str | None:
    for kind in ("input", "output"):
        values = [
            [(v.name, v.type.SerializeToString(deterministic=True)) for v in getattr(graph, kind)]
            for graph in (before, after)
        ]
        if values[0] != values[1]:
            shapes = [", ".join(map(_format_value, getattr(g, kind))) for g in (after, before)]
            return f"its {kind} is {shapes[0]}, not {shapes[1]}"
    return None


def _node_difference(before: Any, after: Any) -> str | None:
    if len(before.node) != len(after.node):
        return f"it has {len(after.node)} nodes, not {len(before.node)}"
    for old, new in zip(before.node, after.node, strict=True):
        if _signature(old) != _signature(new):
            return f"node {new.name or new.output[0]} ({new.op_type}) replaces {old.op_type}" + (
                f" {old.name}" if old.name != new.name else " with other attributes or inputs"
            )
    return None


def _weight_difference(before: Any, after: Any) -> str | None:
    old, new = ({t.name: t for t in graph.initializer} for graph in (before, after))
    unmatched = sorted(old.keys() ^ new.keys())
    if unmatched:
        return f"only one of them has {unmatched[0]}"
    for name, tensor in new.items():
        if _format_type(tensor) != _format_type(old[name]):
            return f"{name} is {_format_type(tensor)}, not {_format_type(old[name])}"
    return None


def _scale_difference(before: Any, after: Any) -> str | None:
    import onnx

    old, new = ({t.name: t for t in graph.initializer} for graph in (before, after))
    for node in after.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        for name in node.input[1:]:
            if name not in new:
                continue
            pair = [onnx.numpy_helper.to_array(tensors[name]) for tensors in (old, new)]
            if pair[0].tobytes() != pair[1].tobytes():
                return f"scale {name}"
    return None


def _signature(node: Any) -> tuple[Any, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, node.domain, list(node.input), list(node.output), attributes


def _format_type(tensor: Any) -> str:
    import onnx

    shape = " x ".join(map(str, tensor.dims)) or "one value"
    return f"{onnx.TensorProto.DataType.Name(tensor.data_type)} {shape}"


def _format_value(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    shape = " x ".join(str(d.dim_value) if d.HasField("dim_value") else "N" for d in dims)
    return f"{value.name} {shape}"
