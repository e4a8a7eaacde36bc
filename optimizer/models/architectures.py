"""torchvision's ResNets, and inferring the architecture from weights.

torchvision's bottleneck networks halve the image in the 3 x 3 convolution (often called ResNet
v1.5). Those of the paper (He et al. 2015), of Keras, Caffe and MXNet halve it in the 1 x 1
convolution before: the same tensors, another network. They have the suffix ``_v1`` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from optimizer.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "ARCHITECTURES",
    "build_module",
    "check_arch",
    "closest_arch",
    "expected_shapes",
    "infer_arch",
    "torchvision_name",
]

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
    "resnet50_v1",
    "resnet101_v1",
    "resnet152_v1",
)
_STRIDE_FIRST = "_v1"

Shapes = dict[str, tuple[int, ...]]
_STEM = "conv1.weight"


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


def build_module(
    arch: str, num_classes: int, *, channels: int = 3, zero_init_residual: bool = False
) -> nn.Module:
    """Build a network with torchvision's random initialization, in training mode.

    Args:
        arch: One of `ARCHITECTURES`.
        num_classes: Number of outputs of the last layer.
        channels: Number of channels of the images.
        zero_init_residual: Start every residual branch at zero (Goyal et al. 2017, 5.1), so that
            deep networks train in few epochs.
    """
    from torch import nn
    from torchvision.models import get_model

    module: nn.Module = get_model(
        torchvision_name(check_arch(arch)),
        weights=None,
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
    )
    if channels != 3:
        stem = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        module.register_module("conv1", stem)
    if arch.endswith(_STRIDE_FIRST):
        _move_stride_to_first(module)
    return module


def torchvision_name(arch: str) -> str:
    """Torchvision's name of the network with the same tensors."""
    return arch.removesuffix(_STRIDE_FIRST)


def _move_stride_to_first(module: nn.Module) -> None:
    """Halve the image in the first 1 x 1 convolution of a block, not in the 3 x 3 convolution."""
    from torchvision.models.resnet import Bottleneck

    for block in module.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@lru_cache(maxsize=len(ARCHITECTURES))
def expected_shapes(arch: str) -> Shapes:
    """Shape of every tensor of an architecture with one class, without allocating any."""
    import torch

    with torch.device("meta"):
        module = build_module(arch, 1)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def infer_arch(state: Mapping[str, torch.Tensor]) -> str | None:
    """Infer the architecture from the names and shapes of the weights; ``None`` if none matches.

    Tensors do not show where a network halves the image; torchvision's way is assumed. The number
    of classes and of input channels may be any, so the last layer and the depth of the first are
    not compared.
    """
    shapes = _body({name: tuple(tensor.shape) for name, tensor in state.items()})
    for arch in ARCHITECTURES:
        if _body(expected_shapes(arch)) == shapes:
            return arch
    return None


def closest_arch(state: Mapping[str, torch.Tensor]) -> str:
    """The architecture that shares most tensors, by name and shape, with a state dict."""
    shapes = set(_body({name: tuple(tensor.shape) for name, tensor in state.items()}).items())
    return min(
        ARCHITECTURES, key=lambda arch: len(shapes ^ set(_body(expected_shapes(arch)).items()))
    )


def _body(shapes: Shapes) -> Shapes:
    return {
        name: (shape[0], *shape[2:]) if name == _STEM else shape
        for name, shape in shapes.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
