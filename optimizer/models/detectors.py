"""Detectors with ResNet backbones: RetinaNet and FCOS with feature pyramids, without their boxes.

The networks are torchvision's, tensor for tensor. Only what computes is kept, the backbone and the
heads: decoding, top-k and NMS are one function for all engines (`optimizer.tasks.boxes`).

Not supported: detectors in two stages. Faster R-CNN crops regions of its own feature maps for the second
stage, which has no fixed shape that an engine could be compiled for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

__all__ = [
    "HeadOnly",
    "LearningDetector",
    "PerLevelHeads",
    "build_detector",
    "initialize_towers",
    "joined_outputs",
    "torchvision_detector",
]

_PYRAMID_CHANNELS = 256


class HeadOnly(nn.Module):
    """The part of a detector that computes; parameters are named as in torchvision.

    Args:
        network: torchvision's `RetinaNet` or `FCOS`; its modules are shared, not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        self.head = network.get_submodule("head")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """N x 3 x H x W float32 to N x anchors x values float32; see `DetectorSpec`."""
        return joined_outputs(self.head(list(self.backbone(images).values())))


class LearningDetector(HeadOnly):
    """A detector that computes its loss in `forward`, so that wrappers around it see all of it.

    Parameters are named as in `HeadOnly`.

    Args:
        network: torchvision's `RetinaNet` or `FCOS`; its modules are shared, not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.anchor_generator = network.get_submodule("anchor_generator")
        # A method, so that the network around the modules is no second owner of their parameters.
        self._compute_loss: Callable[..., dict[str, torch.Tensor]] = network.compute_loss  # type: ignore[assignment]

    def forward(
        self, images: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None = None
    ) -> torch.Tensor:
        """Outputs as of `HeadOnly` for images alone; with targets the sum of the losses, a scalar.

        Args:
            images: N x 3 x H x W float32.
            targets: For each image ``boxes`` (M x 4 float32, pixels of the input) and ``labels`` (M
                int64).
        """
        from torchvision.models.detection.image_list import ImageList

        if targets is None:
            return super().forward(images)
        features = list(self.backbone(images).values())
        outputs = self.head(features)
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        anchors = self.anchor_generator(ImageList(images, sizes), features)
        # FCOS also wants to know how many anchors belong to each level.
        levels = [level.shape[2] * level.shape[3] for level in features]
        more = [levels] if "bbox_ctrness" in outputs else []
        losses = self._compute_loss(targets, outputs, anchors, *more)
        return torch.stack(list(losses.values())).sum()


class PerLevelHeads(nn.Module):
    """The same function with a copy of the heads for each level.

    Layers that run on five levels share weights in training. An engine needs a layer of its own per
    level, because scales of activations, and biases corrected for them, differ between levels.

    Args:
        module: The detector; the backbone is shared, the heads are copied.
        levels: Number of levels.
    """

    def __init__(self, module: HeadOnly, levels: int) -> None:
        super().__init__()
        self.backbone = module.backbone
        self.heads = nn.ModuleList([copy.deepcopy(module.head) for _ in range(levels)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See `HeadOnly.forward`."""
        features = self.backbone(images).values()
        pairs = zip(self.heads, features, strict=True)
        return torch.cat([joined_outputs(head([level])) for head, level in pairs], dim=1)


def joined_outputs(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One tensor of a head's outputs: boxes, centerness if there is one, class logits."""
    order = ("bbox_regression", "bbox_ctrness", "cls_logits")
    return torch.cat([outputs[name] for name in order if name in outputs], dim=2)


def torchvision_detector(kind: str, backbone: str, num_classes: int) -> nn.Module:
    """Torchvision's network with random weights, in training mode, with trainable BatchNorm.

    Args:
        kind: ``retinanet`` or ``fcos``.
        backbone: A ResNet's name.
        num_classes: Number of class logits.
    """
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.fcos import FCOS
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    pyramid = resnet_fpn_backbone(
        backbone_name=backbone,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(_PYRAMID_CHANNELS, _PYRAMID_CHANNELS),
    )
    network: nn.Module = {"retinanet": RetinaNet, "fcos": FCOS}[kind](pyramid, num_classes)
    return network


def build_detector(kind: str, backbone: str, num_classes: int) -> HeadOnly:
    """A detector with random weights, in training mode; see `torchvision_detector`."""
    return HeadOnly(torchvision_detector(kind, backbone, num_classes))


def initialize_towers(module: nn.Module) -> None:
    """Kaiming's initialization (He et al. 2015) of the heads' convolutions before the last.

    Their outputs then keep the variance of their inputs; torchvision's standard deviation of 0.01
    needs long schedules.
    """
    for name, layer in module.get_submodule("head").named_modules():
        if isinstance(layer, nn.Conv2d) and ".conv." in name:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
