"""Detection as a task of the training loop: torchvision's losses, and COCO's AP.

Losses are those of torchvision's `RetinaNet` (focal loss, Lin et al. 2017) and `FCOS`. The heads'
convolutions start with Kaiming's initialization instead of a standard deviation of 0.01, with which
short trainings hardly leave the start.

Not handled: detectors in two stages, and `torch.compile` of the losses, whose shapes follow the
number of objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimizer.data import ImageDataset, Preprocessing
from optimizer.errors import CheckpointError, DataError, UsageError
from optimizer.models import Model
from optimizer.models.architectures import detector_parts
from optimizer.models.detector_spec import DetectorSpec
from optimizer.options import TrainOptions, flag
from optimizer.tasks.average_precision import match_objects
from optimizer.tasks.boxes import BoxReader
from optimizer.tasks.detection_accuracy import find_objects
from optimizer.tasks.detection_classes import match_categories
from optimizer.training.distribution import World
from optimizer.training.object_placement import ObjectBatch, PlacedReading
from optimizer.training.training_recipe import complete

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optimizer.training.training_job import TrainingJob

__all__ = ["Detection", "DetectorSubject"]

_DEFAULT_SIZE = 128
_SMALLEST_SIZE = 64
_BACKBONE = "backbone.body."
_CLASSIFIERS_ONLY = (
    "loss", "label_smoothing", "mixup", "cutmix", "random_erasing", "hidden_layers", "hidden_size",
)  # fmt: skip


class Detection:
    """Loss on a batch and AP on held-out images; see `optimizer.training.loop.Task`.

    Args:
        spec: How outputs become boxes.
        preprocessing: Preprocessing of the network.
        held_out: Images with objects whose classes are the network's, or ``None``.
    """

    better = "ap"
    label = "AP"
    metrics: tuple[str, ...] = ("ap", "ap50")

    def __init__(
        self, spec: DetectorSpec, preprocessing: Preprocessing, held_out: ImageDataset | None
    ) -> None:
        self._reader = BoxReader(spec, preprocessing)
        self._classes = spec.num_classes
        self._preprocessing, self._held_out = preprocessing, held_out

    def loss(self, module: nn.Module, batch: ObjectBatch, device: torch.device) -> torch.Tensor:
        """Sum of the losses of classes, boxes and centerness, a scalar."""
        import torch

        pixels = torch.from_numpy(batch.images).to(device, non_blocking=True)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        targets = [
            {
                "boxes": torch.from_numpy(boxes).to(device),
                "labels": torch.from_numpy(labels).to(device),
            }
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        loss: torch.Tensor = module(pixels, targets)
        return loss

    def evaluate(self, module: nn.Module, world: World) -> dict[str, float]:
        """COCO's AP, and at IoU 0.5, on the held-out images; empty if there are none."""
        data = self._held_out
        if data is None:
            return {}
        assert data.objects is not None
        own = np.arange(len(data))[world.rank :: world.size]
        parts = world.gather(find_objects(module, self._reader, self._preprocessing, data, own))
        found = [parts[index % world.size][index // world.size] for index in range(len(data))]
        matches = match_objects(data.objects, found, self._classes)
        return {"ap": float(matches.mean()[0]), "ap50": float(matches.mean(iou=0.5)[0])}

    def in_backbone(self, name: str) -> bool:
        """Whether a parameter belongs to the ResNet."""
        return name.startswith(_BACKBONE)


class DetectorSubject:
    """Trainings of detectors; see `optimizer.training.training_subject.Subject`."""

    def complete(
        self, options: TrainOptions, data: ImageDataset, init: Model | None
    ) -> TrainOptions:
        """Fill in what is not given; refuse what detectors do not use."""
        continued = init is not None and init.detector is not None
        size = init.image_size if init is not None and continued else _DEFAULT_SIZE
        files = data.source.file(0) is not None
        settings = complete(options, default="detection", image_size=size, files=files)
        given = {*options.as_given()}
        for name in _CLASSIFIERS_ONLY:
            if name in given or (name in TrainOptions.model_fields and _active(settings, name)):
                raise UsageError(
                    f"{flag(name)} is for classifiers; detectors are trained without it",
                    hint=f"leave out {flag(name)}"
                    if name in given
                    else f"{flag(name)} 0 is what {settings.recipe} needs: leave that recipe out",
                )
        if settings.augment not in ("shift", "none"):
            raise UsageError(
                f"--augment {settings.augment} does not move boxes with the image",
                hint="--augment shift, which scales and moves both, or none",
            )
        if options.channels not in (None, 3):
            raise UsageError(
                f"detectors take images of three channels, not {options.channels}",
                hint="leave out --channels: gray images are read as three equal channels",
            )
        assert settings.image_size is not None
        if settings.image_size < _SMALLEST_SIZE:
            raise UsageError(
                f"images of {settings.image_size} pixels are too small for five levels of a pyramid",
                hint=f"use --image-size {_SMALLEST_SIZE} or more",
            )
        return TrainOptions.of(settings, {"channels": 3})

    def examine(
        self, data: ImageDataset, held_out: ImageDataset | None
    ) -> tuple[int, ImageDataset | None]:
        """Number of classes, and the held-out images with their classes in the same order."""
        for images in (data, *(() if held_out is None else (held_out,))):
            if images.objects is None:
                raise DataError(
                    f"{images.name} has one class per image, but a detector learns from boxes",
                    hint="use digits-scenes:train, a COCO file or a YOLO folder",
                )
            if not any(len(objects.classes) for objects in images.objects):
                raise DataError(f"no image of {images.name} has an object")
        classes = data.classes or ()
        if len(data) < 2:
            raise DataError(f"{data.name} has too few images to train on")
        if held_out is not None:
            held_out = match_categories(held_out, len(classes), classes)
        return len(classes), held_out

    def preprocessing(self, job: TrainingJob) -> Preprocessing:
        """A letterbox; that of the detector to start from, if there is one."""
        size, init = job.settings.image_size, job.init
        assert size is not None
        if init is not None and init.detector is not None:
            return init.preprocessing.with_image_size(size)
        return Preprocessing.detection(size)

    def start_notes(self, job: TrainingJob) -> list[str]:
        """Which layers of the model to start from are replaced, and why."""
        assert job.init is not None
        if job.init.detector is None:
            return []  # only the backbone is taken
        if self._other_classes(job):
            return [
                f"{job.init.source} has other classes: its class layers are replaced by new ones"
            ]
        return []

    def _other_classes(self, job: TrainingJob) -> bool:
        init = job.init
        assert init is not None
        return init.num_classes != job.num_classes or init.classes != job.data.classes

    def module(self, job: TrainingJob) -> nn.Module:
        """The network that training starts from; see `LearningDetector`."""
        from optimizer.models.detectors import (
            LearningDetector,
            initialize_towers,
            torchvision_detector,
        )

        assert job.settings.arch is not None
        kind, backbone = _parts(job.settings.arch)
        network = torchvision_detector(kind, backbone, job.num_classes)
        initialize_towers(network)
        if job.init is not None:
            _load(network, job.init, backbone, self._other_classes(job))
        module = LearningDetector(network)
        if job.settings.freeze_backbone:
            for name, parameter in module.named_parameters():
                parameter.requires_grad = not name.startswith(_BACKBONE)
        return module

    def check_start(self, init: Model, arch: str) -> None:
        """Accept a classifier with the backbone's architecture, or the same detector."""
        _, backbone = _parts(arch)
        if init.arch not in (arch, backbone):
            raise CheckpointError(
                f"{init.source} is a {init.arch}, which is neither {arch} nor its backbone",
                hint=f"pass a checkpoint of {backbone} or of {arch}, or leave out --init",
            )

    def task(self, job: TrainingJob) -> Detection:
        """Loss and AP."""
        assert job.settings.arch is not None
        kind, _ = _parts(job.settings.arch)
        spec = DetectorSpec.of(kind, job.preprocessing.image_size, job.num_classes)
        return Detection(spec, job.preprocessing, job.held_out)

    def reading(self, job: TrainingJob) -> PlacedReading:
        """Images and boxes, scaled and moved together."""
        return PlacedReading(job.data, job.preprocessing, moving=job.settings.augment == "shift")

    def finished(self, module: nn.Module) -> nn.Module:
        """The part that computes, as checkpoints and exports have it."""
        from optimizer.models.detectors import HeadOnly

        return HeadOnly(module)


def _active(settings: TrainOptions, name: str) -> bool:
    value = getattr(settings, name)
    default = TrainOptions.model_fields[name].default
    return value not in (None, 0, "ce", default)


def _parts(arch: str) -> tuple[str, str]:
    parts = detector_parts(arch)
    assert parts is not None
    return parts


def _load(network: nn.Module, init: Model, backbone: str, new_layers: bool) -> None:
    if init.narrow is not None:
        raise CheckpointError(
            f"{init.source} is a narrow {init.arch}, and detectors have whole backbones",
            hint="pass the checkpoint before pruning, or leave out --init",
        )
    state = init.module.state_dict()
    if init.arch == backbone:
        body = {name: value for name, value in state.items() if not name.startswith("fc.")}
        network.get_submodule("backbone.body").load_state_dict(body)
        return
    if new_layers:
        state = {name: value for name, value in state.items() if ".cls_logits." not in name}
    network.load_state_dict(state, strict=False)
