"""Trains or fine-tunes a ResNet into a model or a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.data import ImageDataset, Preprocessing, match_classes
from optimizer.errors import DataError, UsageError
from optimizer.models import Model, build_module, weights_digest, write_weights
from optimizer.options import TrainOptions
from optimizer.progress import Progress, Silent
from optimizer.training.loop import fit
from optimizer.training.sources import preprocessing_for

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TrainingResult", "top1", "train", "train_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        model: The network, with the preprocessing it was trained with.
        top1: Accuracy on the held-out images, a fraction; ``None`` if there are none.
        held_out: Name of the held-out images, or ``None``.
        n_held_out: Number of held-out images.
        losses: Mean training loss of each epoch.
    """

    model: Model
    top1: float | None
    held_out: str | None
    n_held_out: int
    losses: tuple[float, ...]

    def details(self) -> dict[str, Any]:
        """Details for the checkpoint's manifest."""
        return {
            "top1": self.top1,
            "held_out": self.held_out,
            "n_held_out": self.n_held_out,
            "losses": list(self.losses),
        }


def train(
    images: ImageDataset,
    options: TrainOptions,
    *,
    held_out: ImageDataset | None = None,
    init: Model | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a network.

    Equal arguments give equal weights on the same machine with the same number of threads. The
    caller's random state is unchanged.

    Args:
        images: The training images.
        options: Architecture and hyperparameters.
        held_out: Images to measure the accuracy on after training.
        init: A model to fine-tune; its last layer is replaced if the classes differ.
        device: ``cpu``, ``cuda`` …; ``None`` uses CUDA if available.
        progress: Receives progress updates, one per batch.

    Raises:
        UsageError: An option is out of range, or the loss became NaN or infinite.
        DataError: Images cannot be used, or there are too few.
    """
    return _train(options, images, held_out=held_out, init=init, device=device, progress=progress)


_RESULT_OPTIONS = {
    "arch", "image_size", "epochs", "batch_size", "lr", "seed", "momentum", "weight_decay",
    "label_smoothing",
}  # fmt: skip
"""Options that affect the resulting weights."""


def train_checkpoint(
    settings: TrainOptions,
    data: ImageDataset,
    path: Path,
    *,
    held_out: ImageDataset | None = None,
    init: Model | None = None,
    device: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Train a network into a checkpoint, unless the result already exists or is cached.

    An interrupt leaves no partial file. See `train` for the arguments and errors.
    """
    data = _without_bad_images(data)
    preprocessing = preprocessing_for(data.name, settings.image_size, init)
    inputs = [Input(role="data", file=data.name, sha256=data.sha256)]
    if held_out is not None:
        inputs.append(Input(role="held_out", file=held_out.name, sha256=held_out.sha256))
    if init is not None:
        inputs.append(Input(role="init", file=init.source, sha256=init.sha256))
    plan = Plan(
        kind="checkpoint",
        settings={
            **settings.model_dump(include=_RESULT_OPTIONS),
            "num_classes": _count_classes(data),
            "preprocessing_assumed": data.preprocessed,
        },
        inputs=inputs,
        libraries=library_versions("torch", "torchvision", "numpy", "pillow"),
        preprocessing=preprocessing.to_dict(),
        classes=data.classes,
    )

    def write(temporary: Path) -> Mapping[str, Any]:
        trained = _train(
            settings, data, held_out=held_out, init=init, device=device, progress=progress
        )
        write_weights(trained.model, temporary)
        return trained.details()

    return produce(plan, path, write, cache=cache)


def _count_classes(data: ImageDataset) -> int:
    """Number of class names, or the highest label plus one if there are no names."""
    return len(data.classes) if data.classes is not None else int(data.labels.max(initial=0)) + 1


def top1(module: nn.Module, data: ImageDataset, preprocessing: Preprocessing) -> float:
    """Top-1 accuracy: the fraction of images whose largest logit is that of their label."""
    import torch

    device = next(module.parameters()).device
    correct = total = 0
    with torch.inference_mode():
        for batch in data.batches(64, preprocessing):
            logits = module(torch.from_numpy(batch.images).to(device))
            correct += int((logits.argmax(dim=1).cpu().numpy() == batch.labels).sum())
            total += len(batch.labels)
    return correct / total


def _train(
    settings: TrainOptions,
    data: ImageDataset,
    *,
    held_out: ImageDataset | None,
    init: Model | None,
    device: str | None,
    progress: Progress | None,
) -> TrainingResult:
    import torch

    progress = progress or Silent()
    data = _without_bad_images(data)
    num_classes = _count_classes(data)
    if len(data) < 2 or num_classes < 2:
        raise DataError(f"{data.name} has too few images or classes to train on")
    if held_out is not None:
        held_out = match_classes(_without_bad_images(held_out), num_classes, data.classes)
    preprocessing = preprocessing_for(data.name, settings.image_size, init)
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        module = _initial_module(settings.arch, num_classes, data.classes, init)
        module = module.to(torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        losses = fit(module, data, preprocessing, settings, progress)
    module.eval()
    accuracy = None
    if held_out is not None:
        accuracy = top1(module, held_out, preprocessing)
    progress.finish(None if accuracy is None else f"top-1 {accuracy:.2%}")
    module = module.to("cpu", memory_format=torch.contiguous_format)
    model = Model(
        module=module,
        arch=settings.arch,
        classes=data.classes,
        num_classes=num_classes,
        preprocessing=preprocessing,
        source=f"trained on {data.name}",
        sha256=weights_digest(module.state_dict()),
        preprocessing_assumed=data.preprocessed,
    )
    return TrainingResult(
        model=model,
        top1=accuracy,
        held_out=None if held_out is None else held_out.name,
        n_held_out=0 if held_out is None else len(held_out),
        losses=losses,
    )


def _without_bad_images(data: ImageDataset) -> ImageDataset:
    return data.verify() if data.skip_bad_images else data


def _initial_module(
    arch: str, num_classes: int, classes: tuple[str, ...] | None, init: Model | None
) -> nn.Module:
    """Build the network that training starts from."""
    from torch import nn

    if init is None:
        return build_module(arch, num_classes, zero_init_residual=True)
    if init.arch != arch:
        raise UsageError(
            f"{init.source} is a {init.arch}, not a {arch}", hint=f"pass --arch {init.arch}"
        )
    module = copy.deepcopy(init.module)
    renamed = init.classes is not None and classes is not None and init.classes != classes
    if init.num_outputs != num_classes or renamed:
        head = module.get_submodule("fc")
        assert isinstance(head, nn.Linear)
        module.register_module("fc", nn.Linear(head.in_features, num_classes))
    return module
