"""Training a quantized network: its loss is the distance from the FP32 network, with labels if given.

Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; for quantized networks
Mishra and Marr 2018, "Apprentice".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.data import Batch, ImageDataset, Preprocessing
from optimizer.training.distribution import World
from optimizer.training.soft_targets import soft_divergence

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Distillation"]

_TEMPERATURE = 4.0
_EVALUATION_BATCH = 64


class Distillation:
    """Loss on a batch, and agreement on held-out images; see `optimizer.training.loop.Task`.

    Args:
        teacher: Maps images to the FP32 network's logits.
        label_share: Share of the loss that is the labels' cross-entropy.
        preprocessing: The network's.
        held_out: Labelled images, or ``None``.
    """

    better = "top1"
    label = "top-1"
    metrics: tuple[str, ...] = ("top1", "agreement")

    def __init__(
        self,
        teacher: Callable[[torch.Tensor], torch.Tensor],
        label_share: float,
        preprocessing: Preprocessing,
        held_out: ImageDataset | None,
    ) -> None:
        self._teacher, self._share = teacher, label_share
        self._preprocessing, self._held_out = preprocessing, held_out

    def loss(self, module: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        import torch

        pixels = torch.from_numpy(batch.images).to(device, non_blocking=True)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            expected = self._teacher(pixels)
        logits = module(pixels)
        distance = _distance(logits, expected)
        if not self._share:
            return distance
        labels = torch.from_numpy(batch.labels).to(device, non_blocking=True)
        return (1 - self._share) * distance + self._share * _cross_entropy(logits, labels)

    def in_backbone(self, name: str) -> bool:
        """No part of the network learns at another rate."""
        del name
        return False

    def evaluate(self, module: nn.Module, world: World) -> Mapping[str, float]:
        """Top-1, and the share of held-out images with the FP32 network's class; empty without."""
        import torch

        if self._held_out is None:
            return {}
        device = next(module.parameters()).device
        own = np.arange(len(self._held_out))[world.rank :: world.size]
        correct = agreeing = 0
        with torch.inference_mode():
            for batch in self._held_out.batches(_EVALUATION_BATCH, self._preprocessing, order=own):
                pixels = torch.from_numpy(batch.images).to(device)
                found = _classes(module(pixels))
                correct += int((found == batch.labels).sum())
                agreeing += int((found == _classes(self._teacher(pixels))).sum())
        right, agreed, images = world.sum([correct, agreeing, len(own)])
        return {"top1": right / images, "agreement": agreed / images}


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence from the softened FP32 distribution; of one output, a sigmoid's."""
    import torch

    if logits.shape[1] == 1:  # a sigmoid between two classes
        logits, expected = (torch.cat([-x, x], dim=1) / 2 for x in (logits, expected))
    return soft_divergence(logits, expected, _TEMPERATURE)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


def _classes(logits: torch.Tensor) -> Any:
    """Class of each image; of one output, whether its sigmoid exceeds a half."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).long().cpu().numpy()
    return logits.argmax(dim=1).cpu().numpy()
