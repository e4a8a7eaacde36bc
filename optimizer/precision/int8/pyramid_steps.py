"""Operations of feature pyramids and detection heads as PyTorch computations, for the simulation.

None of them is quantized: their values pass through, and only the rounding of the layers before and
after them is simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.topology import Topology

if TYPE_CHECKING:
    import torch

__all__ = ["PYRAMID_OPERATIONS", "is_plain_pyramid_step"]

Compute = Callable[..., "torch.Tensor"]


def is_plain_pyramid_step(topology: Topology, node: ir.Node) -> bool:
    """Whether a node is none of these operations, or one of a form that is simulated."""
    if node.op_type == "Resize":
        return _is_nearest(node) and _whole_factors(node) is not None
    if node.op_type == "Reshape":
        shape = _constant(node, 1)
        literal_zero = bool(node.attributes.get_int("allowzero", 0))
        return shape is not None and not (literal_zero and 0 in shape)
    if node.op_type == "InstanceNormalization":
        return _constant(node, 1) is not None and _constant(node, 2) is not None
    if node.op_type == "Concat":
        return len(topology.data_inputs(node)) == len(node.inputs)
    return True


def _constant(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _is_nearest(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        attributes.get_string("mode", "nearest") == "nearest"
        and attributes.get_string("coordinate_transformation_mode", "half_pixel") == "asymmetric"
        and attributes.get_string("nearest_mode", "round_prefer_floor") == "floor"
    )


def _whole_factors(node: ir.Node) -> tuple[int, int] | None:
    """Factors of height and width of a Resize, if they are constant whole numbers."""
    scales = _constant(node, 2)
    if scales is None or scales.shape != (4,):
        return None
    values = [float(scale) for scale in scales]
    if values[:2] != [1.0, 1.0] or any(v != int(v) or v < 1 for v in values[2:]):
        return None
    return int(values[2]), int(values[3])


def _resize(_: Topology, node: ir.Node) -> Compute:
    factors = _whole_factors(node)
    assert factors is not None
    height, width = factors
    return lambda x: x.repeat_interleave(height, 2).repeat_interleave(width, 3)


def _reshape(_: Topology, node: ir.Node) -> Compute:
    shape = _constant(node, 1)
    assert shape is not None
    sizes = [int(size) for size in shape]

    def reshape(x: torch.Tensor) -> torch.Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])

    return reshape


def _concat(_: Topology, node: ir.Node) -> Compute:
    axis = node.attributes.get_int("axis")

    def concat(*parts: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.cat(parts, dim=axis)

    return concat


def _instance_normalization(_: Topology, node: ir.Node) -> Compute:
    """GroupNorm, as exported: an instance normalization between two reshapes."""
    import torch
    from torch.nn import functional

    scale, bias = _constant(node, 1), _constant(node, 2)
    assert scale is not None
    assert bias is not None
    weight, shift = (torch.from_numpy(np.array(values, np.float32)) for values in (scale, bias))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return lambda x: functional.instance_norm(x, weight=weight, bias=shift, eps=epsilon)


PYRAMID_OPERATIONS: dict[str, Callable[[Topology, ir.Node], Compute]] = {
    "Resize": _resize,
    "Reshape": _reshape,
    "Concat": _concat,
    "InstanceNormalization": _instance_normalization,
}
