"""timm's plain ResNets that torchvision does not have: other depths and groups, deep stems, ResNet-D.

Tensors have timm's names and order, so timm's weights load, and the networks are torchvision's blocks,
so timm is not needed. Letters in a name (He et al. 2019, "Bag of Tricks", and timm's own):

- ``c``: three 3 x 3 convolutions of 32, 32 and 64 channels instead of the 7 x 7 one.
- ``d``: also an average pooling before the 1 x 1 convolution of a shortcut that halves the image.
- ``t``: as ``d``, the first convolution with 24 channels.

Not handled: attention (SE, ECA, CBAM), BlurPool and other pooling inside blocks, other activations,
GroupNorm. These are refused by name. ``resnet50s`` and its like have a stem of 128 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TIMM_RESNETS", "build_timm_resnet", "reason_not_built"]


@dataclass(frozen=True)
class _Variant:
    """What distinguishes a network.

    Attributes:
        blocks: Blocks of each stage.
        bottleneck: Whether they are bottlenecks; otherwise basic blocks.
        stem: Channels of the first two of three convolutions; ``None`` for one of 7 x 7.
        pooled: Whether shortcuts pool before their convolution.
        groups: Groups of the 3 x 3 convolutions.
        width: Channels of each group at 64 planes.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    stem: tuple[int, int] | None = None
    pooled: bool = False
    groups: int = 1
    width: int = 64


_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    26: ((2, 2, 2, 2), True),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}
_DEEP, _TIERED = (32, 32), (24, 32)
_VARIANTS = {
    "resnet10t": _Variant((1, 1, 1, 1), bottleneck=False, stem=_TIERED, pooled=True),
    "resnet14t": _Variant((1, 1, 1, 1), stem=_TIERED, pooled=True),
    "resnet26": _Variant(*_DEPTHS[26]),
    "resnet26t": _Variant(*_DEPTHS[26], stem=_TIERED, pooled=True),
    "resnet50t": _Variant(*_DEPTHS[50], stem=_TIERED, pooled=True),
    "resnet200": _Variant(*_DEPTHS[200]),
    **{
        f"resnet{depth}d": _Variant(*_DEPTHS[depth], stem=_DEEP, pooled=True)
        for depth in (18, 26, 34, 50, 101, 152, 200)
    },
    **{f"resnet{depth}c": _Variant(*_DEPTHS[depth], stem=_DEEP) for depth in (50, 101, 152)},
    "resnext50d_32x4d": _Variant(*_DEPTHS[50], stem=_DEEP, pooled=True, groups=32, width=4),
    **{
        f"resnext101_32x{width}d": _Variant(*_DEPTHS[101], groups=32, width=width)
        for width in (4, 16, 32)
    },
}
TIMM_RESNETS = tuple(_VARIANTS)
"""Names of these networks."""

_OTHER_KINDS = {
    "seresne": "squeeze-and-excitation",
    "senet": "squeeze-and-excitation",
    "legacy_se": "squeeze-and-excitation",
    "ecaresne": "efficient channel attention",
    "skresne": "selective kernels",
    "resnest": "split attention",
    "gcresne": "global context",
    "resnetblur": "BlurPool",
    "resnetaa": "pooling inside the blocks",
    "resnetrs": "squeeze-and-excitation and another stem pooling",
    "resnetv2": "normalization before the convolutions",
    "resnet50_gn": "GroupNorm",
    "res2ne": "several scales in a block",
    "resnet50s": "a stem of 128 channels",
    "resnet101s": "a stem of 128 channels",
    "resnet152s": "a stem of 128 channels",
}


def reason_not_built(arch: str) -> str | None:
    """What a network of the ResNet family has that is not built here; ``None`` for other names."""
    return next((what for name, what in _OTHER_KINDS.items() if arch.startswith(name)), None)


def build_timm_resnet(
    arch: str, num_classes: int, channels: int, *, zero_init_residual: bool
) -> nn.Module:
    """Build a network with torchvision's random initialization, in training mode.

    Args:
        arch: One of `TIMM_RESNETS`.
        num_classes: Number of outputs.
        channels: Number of channels of the images.
        zero_init_residual: Start every residual branch at zero.
    """
    from torch import nn
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    variant = _VARIANTS[arch]
    module: nn.Module = ResNet(
        Bottleneck if variant.bottleneck else BasicBlock,
        list(variant.blocks),
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
        groups=variant.groups,
        width_per_group=variant.width,
    )
    if variant.stem is not None:
        module.register_module("conv1", _deep_stem(channels, *variant.stem))
    elif channels != 3:
        module.register_module("conv1", _initialized(nn.Conv2d(channels, 64, 7, 2, 3, bias=False)))
    if variant.pooled:
        for block in module.modules():
            if isinstance(block, (BasicBlock, Bottleneck)) and block.downsample is not None:
                block.downsample = _pooled_shortcut(block.downsample)
    return module


def _deep_stem(channels: int, first: int, second: int) -> nn.Module:
    """Three 3 x 3 convolutions; the BatchNorm after the last one is the network's own."""
    from torch import nn

    return nn.Sequential(
        _initialized(nn.Conv2d(channels, first, 3, stride=2, padding=1, bias=False)),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        _initialized(nn.Conv2d(first, second, 3, padding=1, bias=False)),
        nn.BatchNorm2d(second),
        nn.ReLU(inplace=True),
        _initialized(nn.Conv2d(second, 64, 3, padding=1, bias=False)),
    )


def _pooled_shortcut(shortcut: nn.Module) -> nn.Module:
    """The shortcut of a block with its stride in a pooling before the convolution."""
    from torch import nn

    conv, norm = shortcut.children()
    assert isinstance(conv, nn.Conv2d)
    halves = conv.stride != (1, 1)
    conv.stride = (1, 1)
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if halves else nn.Identity()
    return nn.Sequential(pool, conv, norm)


def _initialized(conv: nn.Conv2d) -> nn.Conv2d:
    """He et al. 2015, as torchvision's other convolutions."""
    from torch import nn

    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
