"""Whether two ONNX files are one network with other weights: what a refit asks for.

A refit replaces weights by name in kernels that are compiled already. It changes no shape, no type
and no operator, and it must not meet other scales: those of activations went into the kernels of
their neighbours when the engine was compiled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.errors import GraphError
from optimizer.graphs.onnx_files import open_onnx

__all__ = ["check_same_network", "check_same_weights"]


def check_same_network(old: Path, new: Path) -> None:
    """Compare two graphs, weights aside.

    Args:
        old: The graph an engine was built from.
        new: The graph whose weights it is to get.

    Raises:
        GraphError: They are different networks; the message names the first difference.
    """
    before, after = (open_onnx(path, weights=False).proto.graph for path in (old, new))
    found = _of_values(before, after) or _of_nodes(before, after) or _of_weights(before, after)
    if found is not None:
        raise GraphError(
            f"{new.name} is another network than {old.name}: {found}",
            hint="give the same architecture, classes, image size and precision, or build an engine",
        )
    # Scales and zero points are small enough never to be kept outside of the file.
    scale = _of_scales(before, after)
    if scale is not None:
        raise GraphError(
            f"{new.name} has another {scale} than {old.name}, which a refit cannot replace",
            hint="build an engine of it: resnet-opt build",
        )


def check_same_weights(old: Path, new: Path) -> None:
    """Compare the weights of two graphs of one network, bit for bit.

    Args:
        old: The graph an engine was built from.
        new: The graph whose weights it is to get.

    Raises:
        GraphError: They differ; the message names the first that does.
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
                f"{new.name} has another {name} than {old.name}, and an engine built with "
                "--strip-weights alone takes only the very weights it was compiled with",
                hint="build it with --strip-weights --refittable to give it others",
            )


def _of_values(before: Any, after: Any) -> str | None:
    for kind in ("input", "output"):
        told = [
            [(v.name, v.type.SerializeToString(deterministic=True)) for v in getattr(graph, kind)]
            for graph in (before, after)
        ]
        if told[0] != told[1]:
            shapes = [", ".join(map(_value, getattr(g, kind))) for g in (after, before)]
            return f"its {kind} is {shapes[0]}, not {shapes[1]}"
    return None


def _of_nodes(before: Any, after: Any) -> str | None:
    if len(before.node) != len(after.node):
        return f"it has {len(after.node)} nodes, not {len(before.node)}"
    for old, new in zip(before.node, after.node, strict=True):
        if _wiring(old) != _wiring(new):
            return f"node {new.name or new.output[0]} ({new.op_type}) stands for {old.op_type}" + (
                f" {old.name}" if old.name != new.name else " with other attributes or inputs"
            )
    return None


def _of_weights(before: Any, after: Any) -> str | None:
    old, new = ({t.name: t for t in graph.initializer} for graph in (before, after))
    odd = sorted(old.keys() ^ new.keys())
    if odd:
        return f"{odd[0]} is in one of them only"
    for name, tensor in new.items():
        if _form(tensor) != _form(old[name]):
            return f"{name} is {_form(tensor)}, not {_form(old[name])}"
    return None


def _of_scales(before: Any, after: Any) -> str | None:
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


def _wiring(node: Any) -> tuple[Any, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, node.domain, list(node.input), list(node.output), attributes


def _form(tensor: Any) -> str:
    import onnx

    shape = " x ".join(map(str, tensor.dims)) or "one value"
    return f"{onnx.TensorProto.DataType.Name(tensor.data_type)} {shape}"


def _value(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    shape = " x ".join(str(d.dim_value) if d.HasField("dim_value") else "N" for d in dims)
    return f"{value.name} {shape}"
