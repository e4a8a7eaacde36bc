"""What a training needs, checked before it starts: data, options, the network to start from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Input, Plan, library_versions
from optimizer.data import ImageDataset, Preprocessing, match_classes, shared_images
from optimizer.errors import CheckpointError, DataError
from optimizer.models import Model, build_head, build_module, hidden_sizes
from optimizer.models.architectures import expected_shapes
from optimizer.options import TrainOptions
from optimizer.training.sources import preprocessing_for
from optimizer.training.training_recipe import complete

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TrainingJob", "initial_module", "prepare"]

_DEFAULT_ARCH = "resnet50"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything a training needs, checked.

    Attributes:
        settings: Complete options.
        data: The training images, all readable.
        held_out: Images to measure the accuracy on, or ``None``.
        init: The model to start from, or ``None``.
        num_classes: Number of outputs.
        notes: What the user should know before the training starts.
    """

    settings: TrainOptions
    data: ImageDataset
    held_out: ImageDataset | None
    init: Model | None
    num_classes: int
    notes: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the network."""
        assert self.settings.image_size is not None
        return preprocessing_for(self.data.name, self.settings.image_size, self.init)

    @property
    def plan(self) -> Plan:
        """What determines the weights."""
        inputs = [Input(role="data", file=self.data.name, sha256=self.data.sha256)]
        if self.held_out is not None:
            inputs.append(
                Input(role="held_out", file=self.held_out.name, sha256=self.held_out.sha256)
            )
        if self.init is not None:
            inputs.append(Input(role="init", file=self.init.source, sha256=self.init.sha256))
        return Plan(
            kind="checkpoint",
            settings={
                **self.settings.model_dump(mode="json", exclude=_NO_RESULT),
                "num_classes": self.num_classes,
                "preprocessing_assumed": self.data.preprocessed,
            },
            inputs=inputs,
            libraries=library_versions("torch", "torchvision", "numpy", "pillow"),
            preprocessing=self.preprocessing.to_dict(),
            classes=self.data.classes,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a training to be continued, with readable names."""
        plan = self.plan
        return {
            **plan.settings,
            **{given.role: f"{given.file} ({given.sha256[:12]})" for given in plan.inputs},
            **{f"version of {name}": version for name, version in plan.libraries.items()},
        }


_NO_RESULT = {
    "data", "val", "init", "recipe", "device", "min_cuda", "min_cudnn", "min_python", "resume",
    "elastic", "checkpoint_every", "workers", "skip_bad_images", "channels", "track",
}  # fmt: skip
"""Options that do not affect the resulting weights, or do so through the inputs."""


def prepare(
    options: TrainOptions,
    data: ImageDataset,
    held_out: ImageDataset | None,
    init: Model | None,
) -> TrainingJob:
    """Complete the options and check the data."""
    data = _without_bad_images(data)
    num_classes = _count_classes(data)
    if len(data) < 2 or num_classes < 2:
        raise DataError(f"{data.name} has too few images or classes to train on")
    notes = []
    if held_out is not None:
        held_out = match_classes(_without_bad_images(held_out), num_classes, data.classes)
        if shared := shared_images(data, held_out):
            notes.append(
                f"{shared} of {len(held_out)} images of {held_out.name} are also in {data.name}: the "
                "accuracy on them says little"
            )
    files = data.source.file(0) is not None
    scratch = "scratch" if files else "digits"
    settings = complete(
        options,
        default=scratch if init is None else "finetune",
        image_size=None if init is None else init.image_size,
        files=files,
    )
    arch = settings.arch or (_DEFAULT_ARCH if init is None else init.arch)
    if init is not None and init.arch != arch:
        raise CheckpointError(
            f"{init.source} is a {init.arch}, not a {arch}", hint=f"pass --arch {init.arch}"
        )
    job = TrainingJob(
        settings=TrainOptions.of(settings, {"arch": arch}),
        data=data,
        held_out=held_out,
        init=init,
        num_classes=num_classes,
        notes=tuple(notes),
    )
    if init is not None and (reason := _new_head(init, job)):
        note = f"{init.source} {reason}: its last layer is replaced by a new one"
        return replace(job, notes=(*notes, note))
    return job


def _count_classes(data: ImageDataset) -> int:
    """Number of class names, or the highest label plus one if there are no names."""
    return len(data.classes) if data.classes is not None else int(data.labels.max(initial=0)) + 1


def _without_bad_images(data: ImageDataset) -> ImageDataset:
    return data.verify() if data.skip_bad_images else data


def _new_head(init: Model, job: TrainingJob) -> str | None:
    """Why the last layers of a model must be replaced, or ``None``."""
    if init.num_outputs != job.num_classes:
        return f"has {init.num_outputs} outputs, not {job.num_classes}"
    classes = job.data.classes
    if init.classes is not None and classes is not None and init.classes != classes:
        return "has other classes"
    if job.settings.hidden_layers and hidden_sizes(init.module) != _hidden(job.settings):
        return "has other hidden layers"
    return None


def initial_module(job: TrainingJob) -> nn.Module:
    """Build the network that training starts from, with PyTorch's generator."""
    settings, init = job.settings, job.init
    assert settings.arch is not None
    if init is None:
        module = build_module(settings.arch, job.num_classes, zero_init_residual=True)
    else:
        module = copy.deepcopy(init.module)
    hidden = _hidden(settings)
    if init is None or _new_head(init, job):
        features = expected_shapes(settings.arch)["fc.weight"][1]
        if hidden or init is not None:
            module.register_module("fc", build_head(features, hidden, job.num_classes))
    if settings.freeze_backbone:
        for name, parameter in module.named_parameters():
            parameter.requires_grad = name.startswith("fc.")
    return module


def _hidden(settings: TrainOptions) -> tuple[int, ...]:
    """Widths of the hidden layers of the head."""
    return (settings.hidden_size,) * settings.hidden_layers
