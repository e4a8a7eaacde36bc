"""Distillation: a network learns the outputs of another one, and the labels (Hinton et al. 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.data import Batch, ImageDataset, Preprocessing
from optimizer.options import TrainOptions
from optimizer.training.classification_task import Classification, ClassifierSubject
from optimizer.training.soft_targets import soft_divergence

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optimizer.training.training_job import TrainingJob

__all__ = ["TaughtClassification", "TaughtSubject"]

_TEMPERATURE = 2.0
_TEACHER_SHARE = 0.9
"""Weight of the teacher in the loss; the rest is the labels'."""


class TaughtClassification(Classification):
    """Loss against a teacher's outputs and the labels; accuracy as in `Classification`.

    The loss is `soft_divergence` from the teacher, and cross-entropy with the labels.

    Not handled: mixup and CutMix, whose labels are mixed; settings with them are refused by the caller.
    """

    def __init__(
        self,
        settings: TrainOptions,
        num_classes: int,
        preprocessing: Preprocessing,
        held_out: ImageDataset | None,
        teacher: nn.Module,
    ) -> None:
        super().__init__(settings, num_classes, preprocessing, held_out)
        self._teacher = teacher.eval()

    def loss(self, module: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        import torch

        pixels = torch.from_numpy(batch.images).to(device, non_blocking=True)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(batch.labels).to(device, non_blocking=True)
        with torch.no_grad():
            wanted = self._teacher.to(device)(pixels)
        logits = module(pixels)
        taught = soft_divergence(logits, wanted, _TEMPERATURE)
        return _TEACHER_SHARE * taught + (1 - _TEACHER_SHARE) * self._criterion(logits, labels)


class TaughtSubject(ClassifierSubject):
    """Trainings of classifiers that learn from another one, the ``teacher`` of the job."""

    def task(self, job: TrainingJob) -> TaughtClassification:
        """Loss against the teacher and the labels, and accuracy."""
        assert job.teacher is not None
        return TaughtClassification(
            job.settings, job.num_classes, job.preprocessing, job.held_out, job.teacher.module
        )
