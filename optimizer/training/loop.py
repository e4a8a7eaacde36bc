"""A simple training loop for small datasets.

SGD with Nesterov momentum and a one-cycle cosine learning rate (Smith and Topin 2018),
zero-initialized residual branches and no weight decay on BatchNorm and biases (Goyal et al. 2017;
He et al. 2019, "Bag of Tricks"), and label smoothing. To train on ImageNet from scratch, use the
recipes of torchvision or timm on several GPUs and load the checkpoint here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Batch, ImageDataset, Preprocessing
from optimizer.errors import UsageError
from optimizer.options import TrainOptions
from optimizer.progress import Progress
from optimizer.training.augment import Augmentation
from optimizer.training.sources import is_digits

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["fit"]

# Preprocessed datasets up to this size are kept in memory after the first read.
_MAX_IN_MEMORY_BYTES = 512 << 20


def fit(
    module: nn.Module,
    data: ImageDataset,
    preprocessing: Preprocessing,
    settings: TrainOptions,
    progress: Progress,
) -> tuple[float, ...]:
    """Train ``module`` in place, on its device.

    Returns:
        Mean loss of each epoch.

    Raises:
        UsageError: The loss became NaN or infinite.
        DataError: An image cannot be read.
    """
    import torch
    from torch.nn.functional import cross_entropy

    images = _TrainingImages(data, preprocessing, settings)
    steps = settings.epochs * images.steps_per_epoch
    optimizer = _optimizer(module, settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=steps, cycle_momentum=False
    )
    device = next(module.parameters()).device
    progress.start(f"training {settings.arch} on {data.name}", steps)
    module.train()
    means = []
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for batch in images.epoch():
            pixels = torch.from_numpy(batch.images).to(device)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            loss = cross_entropy(
                module(pixels),
                torch.from_numpy(batch.labels).to(device),
                label_smoothing=settings.label_smoothing,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(_finite(float(loss.detach()), epoch, settings))
            progress.advance(note=f"epoch {epoch}/{settings.epochs}, loss {losses[-1]:.3f}")
        means.append(float(np.mean(losses)))
    return tuple(means)


def _finite(loss: float, epoch: int, settings: TrainOptions) -> float:
    if not math.isfinite(loss):
        raise UsageError(
            f"training diverged: the loss became {loss} in epoch {epoch}",
            hint=f"lower the learning rate: --lr {settings.lr / 10:g}",
        )
    return loss


def _optimizer(module: nn.Module, settings: TrainOptions) -> torch.optim.Optimizer:
    import torch

    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in module.parameters():
        # Only kernels and the last layer's matrix decay; BatchNorm parameters and biases are 1-D.
        (decayed if parameter.ndim > 1 else undecayed).append(parameter)
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=True,
        fused=True,  # one pass over the weights; the update is a tenth of a step at 32 px
    )


class _TrainingImages:
    """The training images, reshuffled and augmented in each epoch."""

    def __init__(
        self, data: ImageDataset, preprocessing: Preprocessing, settings: TrainOptions
    ) -> None:
        self._data = data
        self._preprocessing = preprocessing
        self._batch_size = min(settings.batch_size, len(data))
        # The last, smaller batch is dropped: BatchNorm at 1 x 1 needs more than one image, and the
        # next epoch is shuffled again.
        self.steps_per_epoch = len(data) // self._batch_size
        self._random = np.random.RandomState(settings.seed)
        size = preprocessing.image_size
        # Digits are not symmetric, so they are not flipped; their original images are only 8 pixels
        # wide, so they are shifted less.
        self._augmentation = (
            Augmentation(shift=max(1, size // 32), flip=False)
            if is_digits(data.name)
            else Augmentation(shift=max(1, size // 8), flip=True)
        )
        bytes_needed = len(data) * 3 * size * size * np.dtype(np.float32).itemsize
        self._in_memory = self._read_all() if bytes_needed <= _MAX_IN_MEMORY_BYTES else None

    def _read_all(self) -> NDArray[np.float32]:
        batches = self._data.batches(256, self._preprocessing)
        return np.concatenate([batch.images for batch in batches])

    def epoch(self) -> Iterator[Batch]:
        """Yield every image once, in batches of equal size (the rest is dropped)."""
        count = self.steps_per_epoch * self._batch_size
        order = self._random.permutation(len(self._data))[:count].astype(np.int64)
        for batch in self._read(order):
            yield batch._replace(images=self._augmentation.apply(batch.images, self._random))

    def _read(self, order: NDArray[np.int64]) -> Iterator[Batch]:
        if self._in_memory is None:
            yield from self._data.batches(self._batch_size, self._preprocessing, order=order)
            return
        for indices in order.reshape(-1, self._batch_size):
            yield Batch(self._in_memory[indices], self._data.labels[indices], indices)
