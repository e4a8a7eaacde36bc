"""Classification as a task of the training loop: its loss and its accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.data import Batch, ImageDataset, Preprocessing, match_classes
from optimizer.errors import CheckpointError, DataError, UsageError
from optimizer.models import Model, build_head, build_module, hidden_sizes
from optimizer.models.architectures import adapt_stem, expected_shapes
from optimizer.options import TrainOptions
from optimizer.training.distribution import World
from optimizer.training.labelled_reading import LabelledReading
from optimizer.training.sources import preprocessing_for
from optimizer.training.training_recipe import complete

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optimizer.training.training_job import TrainingJob

__all__ = ["Classification", "ClassifierSubject", "top1"]

_HEAD = "fc."

_EVALUATION_BATCH = 64


class Classification:
    """Loss on a batch and accuracy on held-out images; see `optimizer.training.loop.Task`."""

    better = "top1"
    label = "top-1"
    metrics: tuple[str, ...] = ("top1",)

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

    def in_backbone(self, name: str) -> bool:
        """Whether a parameter is not one of the last layers."""
        return not name.startswith(_HEAD)


class ClassifierSubject:
    """Trainings of classifiers; see `optimizer.training.training_subject.Subject`."""

    def complete(
        self, options: TrainOptions, data: ImageDataset, init: Model | None
    ) -> TrainOptions:
        """Fill in what is not given; small images are shifted instead of cropped."""
        files = data.source.file(0) is not None
        scratch = "scratch" if files else "digits"
        settings = complete(
            options,
            default=scratch if init is None else "finetune",
            image_size=None if init is None else init.image_size,
            files=files,
        )
        channels = options.channels or (3 if init is None else init.channels)
        if init is not None and init.channels not in (3, channels):
            raise CheckpointError(
                f"{init.source} takes images of {init.channels} channels, not {channels}",
                hint=f"--channels {init.channels}, or leave out --init",
            )
        if channels == 4 and settings.augment in ("trivial", "rand"):
            raise UsageError(
                f"--augment {settings.augment} changes colours, which four channels do not have",
                hint="--augment crop",
            )
        return TrainOptions.of(settings, {"channels": channels})

    def examine(
        self, data: ImageDataset, held_out: ImageDataset | None
    ) -> tuple[int, ImageDataset | None]:
        """Number of classes, and the held-out images with their labels in the same order."""
        num_classes = _count_classes(data)
        if len(data) < 2 or num_classes < 2:
            raise DataError(f"{data.name} has too few images or classes to train on")
        if held_out is not None:
            held_out = match_classes(held_out, num_classes, data.classes)
        return num_classes, held_out

    def check_start(self, init: Model, arch: str) -> None:
        """Accept only the same architecture."""
        if init.arch != arch:
            raise CheckpointError(
                f"{init.source} is a {init.arch}, not a {arch}", hint=f"pass --arch {init.arch}"
            )

    def preprocessing(self, job: TrainingJob) -> Preprocessing:
        """That of the model to start from, else of the data."""
        assert job.settings.image_size is not None
        base = preprocessing_for(job.data.name, job.settings.image_size, job.init)
        return base.with_channels(job.settings.channels or base.channels)

    def start_notes(self, job: TrainingJob) -> list[str]:
        """Which layers of the model to start from are replaced or changed, and why."""
        init, notes = job.init, []
        assert init is not None
        if reason := self._new_head(job):
            notes.append(f"{init.source} {reason}: its last layer is replaced by a new one")
        if init.channels != job.settings.channels:
            notes.append(
                f"{init.source} takes images of {init.channels} channels: its first layer is adapted "
                f"to {job.settings.channels}"
            )
        return notes

    def _new_head(self, job: TrainingJob) -> str | None:
        init, classes = job.init, job.data.classes
        assert init is not None
        if init.num_outputs != job.num_classes:
            return f"has {init.num_outputs} outputs, not {job.num_classes}"
        if init.classes is not None and classes is not None and init.classes != classes:
            return "has other classes"
        if job.settings.hidden_layers and hidden_sizes(init.module) != _hidden(job.settings):
            return "has other hidden layers"
        return None

    def module(self, job: TrainingJob) -> nn.Module:
        """The network that training starts from, with PyTorch's generator."""
        settings, init = job.settings, job.init
        assert settings.arch is not None
        if init is None:
            module = build_module(
                settings.arch,
                job.num_classes,
                channels=settings.channels or 3,
                zero_init_residual=True,
            )
        else:
            module = copy.deepcopy(init.module)
            if settings.channels != init.channels:
                adapt_stem(module, settings.channels or 3)
        hidden = _hidden(settings)
        if init is None or self._new_head(job):
            whole = expected_shapes(settings.arch)["fc.weight"][1]
            features = whole if init is None else init.widths.features
            if hidden or init is not None:
                module.register_module("fc", build_head(features, hidden, job.num_classes))
        if settings.freeze_backbone:
            for name, parameter in module.named_parameters():
                parameter.requires_grad = name.startswith(_HEAD)
        return module

    def task(self, job: TrainingJob) -> Classification:
        """Loss and accuracy."""
        return Classification(job.settings, job.num_classes, job.preprocessing, job.held_out)

    def reading(self, job: TrainingJob) -> LabelledReading:
        """Augmented images with their labels."""
        return LabelledReading(job.data, job.preprocessing, job.settings)

    def finished(self, module: nn.Module) -> nn.Module:
        """The network itself."""
        return module


def _count_classes(data: ImageDataset) -> int:
    """Number of class names, or the highest label plus one if there are no names."""
    return len(data.classes) if data.classes is not None else int(data.labels.max(initial=0)) + 1


def _hidden(settings: TrainOptions) -> tuple[int, ...]:
    """Widths of the hidden layers of the head."""
    return (settings.hidden_size,) * settings.hidden_layers


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
