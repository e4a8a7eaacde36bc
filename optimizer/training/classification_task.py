"""Classification as a task of the training loop: its loss and its accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.data import Batch, ImageDataset, Preprocessing
from optimizer.options import TrainOptions
from optimizer.training.distribution import World

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Classification", "top1"]

_EVALUATION_BATCH = 64


class Classification:
    """Loss on a batch and accuracy on held-out images; see `optimizer.training.loop.Task`."""

    better = "top1"

    def __init__(
        self,
        settings: TrainOptions,
        num_classes: int,
        preprocessing: Preprocessing,
        held_out: ImageDataset | None,
    ) -> None:
        self._preprocessing, self._held_out = preprocessing, held_out
        self._mix = _mixing(settings, num_classes)
        self._criterion = _criterion(settings, num_classes)

    def loss(self, module: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        import torch

        pixels = torch.from_numpy(batch.images).to(device, non_blocking=True)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        targets = torch.from_numpy(batch.labels).to(device, non_blocking=True)
        if self._mix is not None:
            pixels, targets = self._mix(pixels, targets)
        return self._criterion(module(pixels), targets)

    def evaluate(self, module: nn.Module, world: World) -> dict[str, float]:
        """Accuracy on the held-out images, each counted once; empty if there are none."""
        if self._held_out is None:
            return {}
        own = np.arange(len(self._held_out))[world.rank :: world.size]
        correct = _count_correct(module, self._held_out, self._preprocessing, own)
        total, images = world.sum([correct, len(own)])
        return {"top1": total / images}


def top1(module: nn.Module, data: ImageDataset, preprocessing: Preprocessing) -> float:
    """Top-1 accuracy: the fraction of images whose largest logit is that of their label."""
    everything = np.arange(len(data))
    return _count_correct(module, data, preprocessing, everything) / len(data)


def _count_correct(
    module: nn.Module, data: ImageDataset, preprocessing: Preprocessing, order: Any
) -> int:
    import torch

    device = next(module.parameters()).device
    correct = 0
    with torch.inference_mode():
        for batch in data.batches(_EVALUATION_BATCH, preprocessing, order=order):
            logits = module(torch.from_numpy(batch.images).to(device))
            correct += int((logits.argmax(dim=1).cpu().numpy() == batch.labels).sum())
    return correct


def _mixing(settings: TrainOptions, num_classes: int) -> Callable[..., Any] | None:
    """Torchvision's mixup and CutMix, one of them per batch if both are on."""
    if not settings.mixup and not settings.cutmix:
        return None
    from torchvision.transforms import v2

    kinds: list[Any] = []
    if settings.mixup:
        kinds.append(v2.MixUp(alpha=settings.mixup, num_classes=num_classes))
    if settings.cutmix:
        kinds.append(v2.CutMix(alpha=settings.cutmix, num_classes=num_classes))
    mix: Callable[..., Any] = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
    return mix


def _criterion(
    settings: TrainOptions, num_classes: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Mean loss of logits (N x classes) against labels (N) or shares of classes (N x classes)."""
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

    smoothing = settings.label_smoothing or 0.0

    def cross(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, targets, label_smoothing=smoothing)

    def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        shares = targets if targets.ndim == 2 else one_hot(targets, num_classes)
        shares = shares.to(logits.dtype) * (1 - smoothing) + smoothing / num_classes
        return binary_cross_entropy_with_logits(logits, shares)

    return binary if settings.loss == "bce" else cross
