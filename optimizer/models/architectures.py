"""torchvision's ResNets, and inferring the architecture from weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from optimizer.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ARCHITECTURES", "build_module", "check_arch", "expected_shapes", "infer_arch"]

ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)

Shapes = dict[str, tuple[int, ...]]
_HEAD = ("fc.weight", "fc.bias")


def check_arch(arch: str) -> str:
    """Return ``arch`` if it is one of `ARCHITECTURES`.

    Raises:
        CheckpointError: Unknown architecture.
    """
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"unknown architecture {arch!r}", hint=f"use one of {', '.join(ARCHITECTURES)}"
        )
    return arch


def build_module(arch: str, num_classes: int, *, zero_init_residual: bool = False) -> nn.Module:
    """Build a network with torchvision's random initialization, in training mode.

    Args:
        arch: One of `ARCHITECTURES`.
        num_classes: Number of outputs of the last layer.
        zero_init_residual: Start every residual branch at zero (Goyal et al. 2017, 5.1), so that
            deep networks train in few epochs.
    """
    from torchvision.models import get_model

    module: nn.Module = get_model(
        check_arch(arch),
        weights=None,
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
    )
    return module


@lru_cache(maxsize=len(ARCHITECTURES))
def expected_shapes(arch: str) -> Shapes:
    """Shape of every tensor of an architecture with one class, without allocating any."""
    import torch

    with torch.device("meta"):
        module = build_module(arch, 1)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def infer_arch(state: Mapping[str, torch.Tensor]) -> str | None:
    """Infer the architecture from the names and shapes of the weights; ``None`` if none matches.

    The last layer is not compared because its size is the number of classes.
    """
    shapes = _body({name: tuple(tensor.shape) for name, tensor in state.items()})
    for arch in ARCHITECTURES:
        if _body(expected_shapes(arch)) == shapes:
            return arch
    return None


def _body(shapes: Shapes) -> Shapes:
    return {
        name: shape
        for name, shape in shapes.items()
        if name not in _HEAD and not name.endswith("num_batches_tracked")
    }
