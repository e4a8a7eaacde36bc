"""What a training needs, checked before it starts: data, options, the network to start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from optimizer.artifacts import Input, Plan, library_versions
from optimizer.data import ImageDataset, Preprocessing, shared_images
from optimizer.models import Model
from optimizer.models.architectures import check_arch
from optimizer.options import QuantizedTraining, TrainOptions
from optimizer.training.training_subject import Subject, subject_of

__all__ = ["DEFAULT_ARCH", "TrainingJob", "prepare"]

DEFAULT_ARCH = "resnet50"
"""What is trained if neither ``--arch`` nor ``--init`` says it."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything a training needs, checked.

    Attributes:
        subject: The kind of network.
        settings: Complete options.
        data: The training images, all readable.
        held_out: Images to measure the accuracy on, or ``None``.
        init: The model to start from, or ``None``.
        num_classes: Number of outputs.
        notes: What the user should know before the training starts.
        teacher: The model whose outputs are learned too, or ``None``.
        keeps_best: Whether the result is the best epoch on the held-out images, not the last one.
    """

    subject: Subject
    settings: TrainOptions
    data: ImageDataset
    held_out: ImageDataset | None
    init: Model | None
    num_classes: int
    notes: tuple[str, ...] = ()
    teacher: Model | None = None
    keeps_best: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the network."""
        return self.subject.preprocessing(self)

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
        if self.teacher is not None:
            teacher = self.teacher
            inputs.append(Input(role="teacher", file=teacher.source, sha256=teacher.sha256))
        return Plan(
            kind="checkpoint",
            settings={
                **self.settings.model_dump(mode="json", exclude=_NO_RESULT),
                "num_classes": self.num_classes,
                "preprocessing_assumed": self.data.preprocessed,
                **({"keeps_best": True} if self.keeps_best else {}),
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
    "elastic", "find_batch_size", "effective_batch", "checkpoint_every", "workers",
    "skip_bad_images", "image_folder", "track", *QuantizedTraining.model_fields,
}  # fmt: skip
"""Options that do not affect the resulting weights, or do so through the inputs."""


def prepare(
    options: TrainOptions,
    data: ImageDataset,
    held_out: ImageDataset | None,
    init: Model | None,
) -> TrainingJob:
    """Complete the options and check the data."""
    arch = options.arch or (DEFAULT_ARCH if init is None else init.arch)
    subject = subject_of(check_arch(arch))
    if init is not None:
        subject.check_start(init, arch)
    settings = subject.complete(options, data, init)
    data = data.without_bad_images()
    held_out = None if held_out is None else held_out.without_bad_images()
    num_classes, held_out = subject.examine(data, held_out)
    notes = []
    if held_out is not None and (shared := shared_images(data, held_out)):
        notes.append(
            f"{shared} of {len(held_out)} images of {held_out.name} are also in {data.name}: the "
            "accuracy on them says little"
        )
    job = TrainingJob(
        subject=subject,
        settings=TrainOptions.of(settings, {"arch": arch}),
        data=data,
        held_out=held_out,
        init=init,
        num_classes=num_classes,
        notes=tuple(notes),
    )
    for images in (data, held_out):
        if images is not None:
            images.check_depth(job.preprocessing)
    if init is not None:
        return replace(job, notes=(*notes, *subject.start_notes(job)))
    return job
