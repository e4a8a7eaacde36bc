"""torchvision's and timm's ResNets, and inferring the architecture from weights.

torchvision's bottleneck networks halve the image in the 3 x 3 convolution (often called ResNet
v1.5). Those of the paper (He et al. 2015), of Keras, Caffe and MXNet halve it in the 1 x 1
convolution before: the same tensors, another network. They have the suffix ``_v1`` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from optimizer.errors import CheckpointError
from optimizer.models.detector_spec import DETECTOR_KINDS
from optimizer.models.narrow import Widths, apply_widths, widths_of_shapes
from optimizer.models.timm_resnets import TIMM_RESNETS, build_timm_resnet, reason_not_built

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "ARCHITECTURES",
    "DETECTORS",
    "adapt_stem",
    "build_module",
    "check_arch",
    "closest_arch",
    "detector_parts",
    "expected_shapes",
    "full_widths",
    "infer_arch",
    "infer_network",
    "stem_name",
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
    *TIMM_RESNETS,
)
_STRIDE_FIRST = "_v1"

DETECTORS = tuple(
    f"{kind}_{backbone}_fpn"
    for kind in DETECTOR_KINDS
    for backbone in ("resnet18", "resnet34", "resnet50", "resnet101")
)
"""Detectors in one stage on a feature pyramid; torchvision's names, also for other backbones."""
_CROPS = (
    "a detector in two stages: the second one crops regions whose number depends on the image, which "
    "has no fixed shape to compile an engine for"
)
_QUERIES = (
    "a detector whose transformer turns queries into boxes: only outputs of one box per anchor are read "
    "here"
)
_OTHER_DETECTORS = {
    "fasterrcnn": _CROPS, "maskrcnn": _CROPS, "keypointrcnn": _CROPS,
    "detr": _QUERIES, "rtdetr": _QUERIES, "rt_detr": _QUERIES, "rfdetr": _QUERIES, "dino": _QUERIES,
    "deformable_detr": _QUERIES, "conditional_detr": _QUERIES,
}  # fmt: skip
"""Why other detectors are refused, by the start of their name."""

Shapes = dict[str, tuple[int, ...]]
_STEMS = ("conv1.weight", "conv1.0.weight")
"""The first convolution, alone or in a deep stem."""


def check_arch(arch: str) -> str:
    """Return ``arch`` if it is one of `ARCHITECTURES` or `DETECTORS`.

    Raises:
        CheckpointError: Unknown architecture.
    """
    refuse_other_detectors(arch)
    if arch not in ARCHITECTURES and (what := reason_not_built(arch)) is not None:
        raise CheckpointError(
            f"{arch} has {what}, which training and quantization here do not handle",
            hint="use a plain ResNet or ResNet-D, such as resnet50d; or train it elsewhere and pass its "
            "ONNX file to build",
        )
    if arch not in ARCHITECTURES and arch not in DETECTORS:
        raise CheckpointError(
            f"unknown architecture {arch!r}",
            hint=f"use one of {', '.join((*ARCHITECTURES, *DETECTORS))}",
        )
    return arch


def refuse_other_detectors(name: str) -> None:
    """Refuse detectors of other kinds by their name, which may be that of a repository.

    Raises:
        CheckpointError: It is one of them; the message says why it cannot be used.
    """
    plain = name.rpartition("/")[2].lower().replace("-", "_")
    for start, reason in _OTHER_DETECTORS.items():
        if plain.startswith(start):
            raise CheckpointError(
                f"{name} is {reason}", hint=f"use a detector in one stage: {', '.join(DETECTORS)}"
            )


def detector_parts(arch: str) -> tuple[str, str] | None:
    """Kind and backbone of a detector: ``retinanet``, ``resnet50``; ``None`` for a classifier."""
    if arch not in DETECTORS:
        return None
    kind, _, rest = arch.partition("_")
    return kind, rest.removesuffix("_fpn")


def build_module(
    arch: str,
    num_classes: int,
    *,
    channels: int = 3,
    zero_init_residual: bool = False,
    widths: Widths | None = None,
) -> nn.Module:
    """Build a network with torchvision's random initialization, in training mode.

    Args:
        arch: One of `ARCHITECTURES` or `DETECTORS`.
        num_classes: Number of outputs of the last layer; class logits per anchor of a detector.
        channels: Number of channels of the images; detectors take three.
        zero_init_residual: For a classifier, start every residual branch at zero (Goyal et al.
            2017, 5.1), so that deep networks train in few epochs.
        widths: For a classifier, channels and blocks that differ from the architecture's.

    Raises:
        CheckpointError: Unknown architecture, or the widths are not those of one like it.
    """
    from torch import nn
    from torchvision.models import get_model

    if (parts := detector_parts(arch)) is not None:
        from optimizer.models.detectors import build_detector

        return build_detector(*parts, num_classes)
    if arch in TIMM_RESNETS:
        network = build_timm_resnet(
            arch, num_classes, channels, zero_init_residual=zero_init_residual
        )
        if widths is not None:
            apply_widths(network, widths, num_classes)
        return network
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
    if widths is not None:
        apply_widths(module, widths, num_classes)
    return module


def adapt_stem(module: nn.Module, channels: int) -> None:
    """Make the first layer of a network for RGB take 1 or 4 channels, in place.

    One channel gets the sum of the three kernels, so a gray image has the response of three equal
    channels. Of four, the last gets a copy of the first one's kernel, and all are scaled by 3/4, so that
    equal channels have the response they had. (timm does the same.)
    """
    import torch
    from torch import nn

    name = stem_name(module.state_dict()).removesuffix(".weight")
    stem = module.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    weight = stem.weight.detach()
    stem.weight = nn.Parameter(
        weight.sum(dim=1, keepdim=True)
        if channels == 1
        else torch.cat([weight, weight[:, :1]], dim=1) * (3 / 4)
    )
    stem.in_channels = channels


def stem_name(state: Mapping[str, torch.Tensor]) -> str:
    """The name of the first convolution's weight."""
    return next(name for name in _STEMS if name in state)


def torchvision_name(arch: str) -> str:
    """Torchvision's name of the network with the same tensors."""
    return arch.removesuffix(_STRIDE_FIRST)


def _move_stride_to_first(module: nn.Module) -> None:
    """Halve the image in the first 1 x 1 convolution of a block, not in the 3 x 3 convolution."""
    from torchvision.models.resnet import Bottleneck

    for block in module.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@lru_cache(maxsize=2 * (len(ARCHITECTURES) + len(DETECTORS)))
def expected_shapes(arch: str, widths: Widths | None = None) -> Shapes:
    """Shape of every tensor of a network with one class, without allocating any."""
    import torch

    with torch.device("meta"):
        module = build_module(arch, 1, widths=widths)
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


def infer_network(
    state: Mapping[str, torch.Tensor], arch: str | None = None
) -> tuple[str, Widths | None] | None:
    """Infer the architecture, and the widths of a narrow network (`optimizer.models.narrow`).

    Args:
        state: Tensors by name.
        arch: The architecture, if it is known.

    Returns:
        The architecture, with ``None`` if the network is whole; ``None`` if nothing matches. A narrow
        network whose architecture is not known gets the smallest that contains its blocks.
    """
    whole = infer_arch(state)
    if whole is not None:
        return (
            None if arch is not None and torchvision_name(arch) != whole else (arch or whole, None)
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    widths = widths_of_shapes(shapes)
    if widths is None or arch in DETECTORS:
        return None
    shapes = _body(shapes)
    candidates = ARCHITECTURES if arch is None else (arch,)
    containing = [
        name for name in candidates if shapes.keys() <= _body(expected_shapes(name)).keys()
    ]
    fitting = [name for name in containing if _fits(shapes, name, widths)]
    if not fitting:
        return None
    return min(fitting, key=lambda name: _excess(name, widths)), widths


def full_widths(arch: str) -> Widths:
    """The widths of a whole classifier."""
    widths = widths_of_shapes(expected_shapes(arch))
    assert widths is not None
    return widths


def _fits(shapes: Shapes, arch: str, widths: Widths) -> bool:
    """Whether a network of this architecture with these widths has these tensors."""
    try:
        return _body(expected_shapes(arch, widths)) == shapes
    except CheckpointError:
        return False


def _excess(arch: str, widths: Widths) -> tuple[int, int, int]:
    """How far an architecture is from its part: channels that it lacks, blocks, channels."""
    whole, part = full_widths(arch).by_block, widths.by_block
    pairs = [(sum(whole[name]), sum(part.get(name, ()))) for name in whole]
    lacking = sum(max(0, narrow - wide) for wide, narrow in pairs)
    return lacking, len(whole) - len(part), sum(wide for wide, _ in pairs)


def closest_arch(state: Mapping[str, torch.Tensor]) -> str:
    """The architecture that shares most tensors, by name and shape, with a state dict."""
    shapes = set(_body({name: tuple(tensor.shape) for name, tensor in state.items()}).items())
    return min(
        ARCHITECTURES, key=lambda arch: len(shapes ^ set(_body(expected_shapes(arch)).items()))
    )


def _body(shapes: Shapes) -> Shapes:
    return {
        name: (shape[0], *shape[2:]) if name in _STEMS else shape
        for name, shape in shapes.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
