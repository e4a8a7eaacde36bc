"""What can be cut from a network: channels inside of blocks, and blocks that become an identity.

The residual stream keeps its width: its channels are in every block of a stage at once. First blocks
of a stage stay, and so do blocks with a convolution in their shortcut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from optimizer.errors import CheckpointError
from optimizer.models import Model

__all__ = ["Prunable", "check_prunable"]


@dataclass(frozen=True)
class Prunable:
    """What can be cut from a network.

    Attributes:
        units: By block: inner channels that stay together, the size of a group; 1 without groups.
        droppable: Blocks that can go as a whole.
    """

    units: Mapping[str, int]
    droppable: frozenset[str]


def check_prunable(model: Model) -> Prunable:
    """Find what can be cut.

    Raises:
        CheckpointError: The network is a detector, has one output, depthwise convolutions, or layers
            without BatchNorm.
    """
    if model.detector is not None:
        raise CheckpointError(
            f"{model.source} is a detector, and pruning cuts classifiers",
            hint="make it faster with --precision int8, or train it on a smaller backbone",
        )
    if model.num_outputs < 2:
        raise CheckpointError(
            f"{model.source} has one output, and pruning needs a score for each class",
            hint="train it with two outputs",
        )
    units: dict[str, int] = {}
    droppable: set[str] = set()
    for name in model.widths.by_block:
        block = model.module.get_submodule(name)
        convs = [
            c for key, c in block.named_children() if isinstance(c, nn.Conv2d) and "conv" in key
        ]
        norms = [n for n in block.children() if isinstance(n, nn.BatchNorm2d)]
        if len(norms) < len(convs):
            raise CheckpointError(
                f"{name} has convolutions without BatchNorm, whose saliency pruning measures",
                hint="prune the network before BatchNorm is folded into it",
            )
        grouped = [conv for conv in convs if conv.groups > 1]
        if any(conv.groups == conv.in_channels for conv in grouped):
            raise CheckpointError(
                f"{name} has a depthwise convolution, whose channels cannot be cut by themselves",
                hint="prune a ResNet with ordinary or grouped convolutions",
            )
        units[name] = grouped[0].in_channels // grouped[0].groups if grouped else 1
        if not name.endswith(".0") and getattr(block, "downsample", None) is None:
            droppable.add(name)
    return Prunable(units, frozenset(droppable))
