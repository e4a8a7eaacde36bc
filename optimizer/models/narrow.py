"""Narrow ResNets: networks of a torchvision architecture with fewer channels or blocks.

What pruning makes. Names stay those of the whole network: of a block that is gone the tensors are
missing, and the others keep their numbers. All widths show in the shapes of the weights, so a plain
state dict is enough, whoever pruned it.

Not handled: a first block of a stage that is gone, a network with other operations, and groups of
another size (a ResNeXt loses whole groups).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Widths", "apply_widths", "widths_of_shapes"]

Shapes = Mapping[str, tuple[int, ...]]
_FOUND_ANYWAY = "remove them: they are found from the weights as well"
_STEM = re.compile(r"conv1(\.\d)?\.weight")
_CONV = re.compile(r"(layer[1-4]\.\d+)\.conv(\d)\.weight")


@dataclass(frozen=True)
class Widths:
    """Output channels of the convolutions of a ResNet.

    Attributes:
        stem: Of the stem.
        blocks: Of ``conv1``, ``conv2`` … of each block that is there, by name and in order. The last
            number of a block is the width of the residual stream.
    """

    stem: int
    blocks: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def by_block(self) -> dict[str, tuple[int, ...]]:
        """The widths of each block by its name."""
        return dict(self.blocks)

    @property
    def features(self) -> int:
        """Channels after the last block."""
        return self.blocks[-1][1][-1]

    def replaced(self, blocks: Mapping[str, tuple[int, ...] | None]) -> Widths:
        """These widths with others for some blocks; ``None`` drops a block."""
        changed = {name: blocks.get(name, widths) for name, widths in self.blocks}
        kept = tuple((name, widths) for name, widths in changed.items() if widths is not None)
        return Widths(self.stem, kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable: ``{"stem": 64, "layer1.0": [32, 64, 256], …}``."""
        return {"stem": self.stem, **{name: list(widths) for name, widths in self.blocks}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Widths:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            blocks = {
                name: tuple(int(width) for width in widths)
                for name, widths in values.items()
                if name != "stem"
            }
            least = min(map(min, blocks.values()))
            widths = cls(int(values["stem"]), tuple(blocks.items()))
        except (ValueError, TypeError, LookupError) as error:
            raise CheckpointError(
                f"the widths of the network are damaged: {error}", hint=_FOUND_ANYWAY
            ) from error
        if least < 1:
            raise CheckpointError(
                "the widths of the network are damaged: a layer without channels",
                hint=_FOUND_ANYWAY,
            )
        return widths


def widths_of_shapes(shapes: Shapes) -> Widths | None:
    """Read the widths from the shapes of the weights; ``None`` if the names are not a ResNet's."""
    blocks: dict[str, dict[int, int]] = {}
    for name, shape in shapes.items():
        if (match := _CONV.fullmatch(name)) is not None and len(shape) == 4:
            blocks.setdefault(match[1], {})[int(match[2])] = shape[0]
    stems = [shape for name, shape in shapes.items() if _STEM.fullmatch(name) and len(shape) == 4]
    if not stems or not blocks or any(not min(convs.values()) for convs in blocks.values()):
        return None
    if any(sorted(convs) != list(range(1, len(convs) + 1)) for convs in blocks.values()):
        return None
    ordered = sorted(blocks, key=lambda name: [int(part) for part in name[5:].split(".")])
    return Widths(
        stems[-1][0],
        tuple((name, tuple(blocks[name][i] for i in sorted(blocks[name]))) for name in ordered),
    )


def apply_widths(module: nn.Module, widths: Widths, num_classes: int) -> None:
    """Make torchvision's ResNet a narrow one, in place; what changes gets its initialization again.

    Args:
        module: The whole network, on any device.
        widths: The widths; blocks that are not in them are removed.
        num_classes: Outputs of the last layer.

    Raises:
        CheckpointError: The network has no such block, or a block has another number of convolutions.
    """
    from torch import nn

    _set_stem(module, widths.stem)
    left = widths.by_block
    stream = widths.stem
    for stage in range(1, 5):
        blocks = module.get_submodule(f"layer{stage}")
        for index, block in list(blocks.named_children()):
            name = f"layer{stage}.{index}"
            if (wanted := left.pop(name, None)) is None and index != "0":
                delattr(blocks, index)
                continue
            if wanted is None or len(wanted) != _convolutions(block):
                raise CheckpointError(
                    f"{name} of the network has {_convolutions(block)} convolutions, not "
                    f"{len(wanted or ())}"
                )
            _narrow_block(block, stream, wanted)
            stream = wanted[-1]
    if left:
        raise CheckpointError(f"the network has no block {next(iter(left))}")
    if module.get_submodule("fc").in_features != stream:
        module.register_module("fc", nn.Linear(stream, num_classes))


def _set_stem(module: nn.Module, width: int) -> None:
    from torch import nn

    stem = module.get_submodule("conv1")
    if isinstance(stem, nn.Conv2d):
        _set_conv(module, "conv1", stem.in_channels, width)
        _set_norm(module, "bn1", width)
        return
    *_, last = stem.children()
    if last.out_channels != width:
        raise CheckpointError(f"a stem of three convolutions ends in {last.out_channels} channels")


def _convolutions(block: nn.Module) -> int:
    return sum(name.startswith("conv") for name, _ in block.named_children())


def _narrow_block(block: nn.Module, stream: int, widths: tuple[int, ...]) -> None:
    width = stream
    for number, wanted in enumerate(widths, start=1):
        _set_conv(block, f"conv{number}", width, wanted)
        _set_norm(block, f"bn{number}", wanted)
        width = wanted
    if getattr(block, "downsample", None) is not None:
        downsample = block.get_submodule("downsample")
        for name, layer in list(downsample.named_children()):  # ResNet-D pools first
            if hasattr(layer, "out_channels"):
                _set_conv(downsample, name, stream, widths[-1])
            elif hasattr(layer, "num_features"):
                _set_norm(downsample, name, widths[-1])


def _set_conv(parent: nn.Module, name: str, channels_in: int, channels_out: int) -> None:
    """A convolution of this size in the place of another; groups keep their size."""
    from torch import nn

    old = parent.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    if (old.in_channels, old.out_channels) == (channels_in, channels_out):
        return
    groups = 1
    if old.groups > 1:
        per_group = old.in_channels // old.groups
        groups = channels_in // per_group
        if channels_in % per_group or channels_out % max(groups, 1):
            raise CheckpointError(f"{channels_in} channels are no whole groups of {per_group}")
    new = nn.Conv2d(
        channels_in,
        channels_out,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        groups=groups,
        bias=False,
        device=old.weight.device,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent.register_module(name, new)


def _set_norm(parent: nn.Module, name: str, channels: int) -> None:
    from torch import nn

    old = parent.get_submodule(name)
    assert isinstance(old, nn.BatchNorm2d)
    if old.num_features != channels:
        parent.register_module(name, nn.BatchNorm2d(channels, device=old.weight.device))
