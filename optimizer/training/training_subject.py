"""What trainings of one kind of network have of their own, before and after the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from optimizer.data import ImageDataset, Preprocessing
from optimizer.models import DETECTORS, Model
from optimizer.options import TrainOptions
from optimizer.training.classification_task import ClassifierSubject
from optimizer.training.detection_task import DetectorSubject
from optimizer.training.loop import Task
from optimizer.training.training_images import Reading

if TYPE_CHECKING:
    from torch import nn

    from optimizer.training.training_job import TrainingJob

__all__ = ["Subject", "subject_of"]


class Subject(Protocol):
    """A kind of network: classifiers, detectors."""

    def complete(
        self, options: TrainOptions, data: ImageDataset, init: Model | None
    ) -> TrainOptions:
        """Fill in what is not given.

        Raises:
            UsageError: An option does not apply to this kind of network.
        """

    def examine(
        self, data: ImageDataset, held_out: ImageDataset | None
    ) -> tuple[int, ImageDataset | None]:
        """Check the images.

        Returns:
            The number of classes, and the held-out images with the same classes in the same order.

        Raises:
            DataError: They cannot be learned from.
        """

    def check_start(self, init: Model, arch: str) -> None:
        """Check that a network of ``arch`` can start from a model.

        Raises:
            CheckpointError: It cannot.
        """

    def preprocessing(self, job: TrainingJob) -> Preprocessing:
        """Preprocessing of the network."""

    def start_notes(self, job: TrainingJob) -> list[str]:
        """Which layers of ``job.init`` are replaced or changed, and why."""

    def module(self, job: TrainingJob) -> nn.Module:
        """The network that training starts from, drawn from PyTorch's generator."""

    def task(self, job: TrainingJob) -> Task:
        """Loss and metrics."""

    def reading(self, job: TrainingJob) -> Reading:
        """How images are augmented and become batches."""

    def finished(self, module: nn.Module) -> nn.Module:
        """The trained network as checkpoints have it."""


_CLASSIFIERS: Subject = ClassifierSubject()
_SUBJECTS: dict[str, Subject] = dict.fromkeys(DETECTORS, DetectorSubject())


def subject_of(arch: str) -> Subject:
    """The kind of an architecture."""
    return _SUBJECTS.get(arch, _CLASSIFIERS)
