"""Saliency: how much the loss would change if a channel, or a whole branch, were zero.

First-order Taylor expansion (Molchanov et al. 2019, "Importance Estimation for Neural Network
Pruning", CVPR, eq. 8 with gates after BatchNorm): the change of an image's loss is the sum over the
positions of a channel of gradient times value; its square, averaged over images, is the saliency. The
same of a whole branch, summed over its channels first, is what an identity block would lose.

Not handled: what channels do together. The sum over several is exact only if their effects on the
loss are independent, which is why networks are cut in rounds and tuned after each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from optimizer.data import ImageDataset
from optimizer.models import Model
from optimizer.progress import Progress

__all__ = ["Saliency", "measure_saliency"]

_BATCH = 32


@dataclass(frozen=True)
class Saliency:
    """Squared changes of the loss, averaged over images.

    Attributes:
        channels: Of each inner layer of each block, by its name (``layer1.0.conv1``), one value per
            output channel.
        blocks: Of the branch of each block.
        images: Number of images.
    """

    channels: Mapping[str, NDArray[np.float64]]
    blocks: Mapping[str, float]
    images: int

    def kept(self, layer: str, width: int, unit: int) -> NDArray[np.int64]:
        """The channels of a layer that stay, in ascending order: those with the largest saliency.

        Args:
            layer: The layer.
            width: How many stay.
            unit: Neighbouring channels that stay together.
        """
        units = self.units(layer, unit)
        best = np.sort(np.argsort(-units, kind="stable")[: width // unit])
        return (best[:, None] * unit + np.arange(unit)).ravel()

    def units(self, layer: str, unit: int) -> NDArray[np.float64]:
        """The saliency of each group of neighbouring channels."""
        sums: NDArray[np.float64] = self.channels[layer].reshape(-1, unit).sum(axis=1)
        return sums


def measure_saliency(model: Model, data: ImageDataset, progress: Progress) -> Saliency:
    """Measure the saliency of all inner channels and all branches.

    Args:
        model: The network; it is not changed.
        data: Labelled images, matched to the network's outputs.
        progress: Receives progress updates, one per image.

    Raises:
        DataError: An image cannot be read.
    """
    module = model.module
    sums: dict[str, NDArray[np.float64]] = {}
    branches: dict[str, float] = {}
    outputs: dict[str, torch.Tensor] = {}
    hooks = []
    for block, widths in model.widths.blocks:
        for number in range(1, len(widths) + 1):
            norm = module.get_submodule(f"{block}.bn{number}")
            hooks.append(norm.register_forward_hook(_keep(outputs, f"{block}.conv{number}")))
    last = {f"{block}.conv{len(widths)}": block for block, widths in model.widths.blocks}
    progress.start("measure saliency", total=len(data))
    try:
        for batch in data.batches(_BATCH, model.preprocessing):
            logits = module(torch.from_numpy(batch.images))
            labels = torch.from_numpy(batch.labels)
            # Summed, so that each image has the gradient of its own loss.
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            names = list(outputs)
            gradients = torch.autograd.grad(loss, [outputs[name] for name in names])
            for name, gradient in zip(names, gradients, strict=True):
                change = (gradient * outputs[name]).detach().double().sum(dim=(2, 3))
                if name in last:
                    total = float(change.sum(dim=1).square().sum())
                    branches[last[name]] = branches.get(last[name], 0.0) + total
                else:
                    squares = change.square().sum(dim=0).numpy()
                    sums[name] = sums.get(name, 0.0) + squares
            outputs.clear()
            progress.advance(len(batch.labels))
    finally:
        for hook in hooks:
            hook.remove()
    images = len(data)
    progress.finish(f"{images} images, {sum(map(len, sums.values())):,} channels")
    return Saliency(
        {name: values / images for name, values in sums.items()},
        {name: value / images for name, value in branches.items()},
        images,
    )


def _keep(outputs: dict[str, torch.Tensor], name: str):  # type: ignore[no-untyped-def]
    def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
        outputs[name] = output

    return hook
