"""Tuning after a cut: distillation from the network before it, with the labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from optimizer.artifacts import Artifact, Cache
from optimizer.data import ImageDataset, stratified_subset
from optimizer.models import Model
from optimizer.options import PruneOptions, TrainOptions
from optimizer.progress import Progress
from optimizer.training import training_folder
from optimizer.training.teacher_task import TaughtSubject
from optimizer.training.trainer import train_job
from optimizer.training.training_job import TrainingJob
from optimizer.training.training_state import StateFile

__all__ = ["tune", "tuning_images"]

_CHOOSING_SHARE = 0.1
"""Share of the training images that the best epoch is chosen on. The images that judge are others."""


def tuning_images(data: ImageDataset, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Images to train on, and others to choose the best epoch on; stratified."""
    chosen = stratified_subset(data.labels, max(1, round(_CHOOSING_SHARE * len(data))), seed)
    rest = data.select(np.setdiff1d(np.arange(len(data)), chosen))
    return rest, replace(data.select(chosen), name=f"{data.name} (choosing)")


def tune(
    narrow: Model,
    teacher: Model,
    data: ImageDataset,
    path: Path,
    options: PruneOptions,
    *,
    cache: Cache | None,
    progress: Progress,
) -> Artifact:
    """Train a narrow network to give the teacher's outputs, and keep the best epoch.

    An interrupted tuning is continued by the same call.

    Args:
        narrow: The network after the cut.
        teacher: The network before any cut.
        data: Training images, matched to the network's outputs.
        path: The checkpoint (``.safetensors``).
        options: Epochs, learning rate, batch size, device and seed.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        UsageError: The loss became NaN or infinite.
        DataError: Too few images.
        Stopped: SIGTERM asked to stop; the same call continues.
    """
    given = {
        name: value
        for name in ("epochs", "lr", "batch_size")
        if (value := getattr(options, name)) is not None
    }
    data = replace(data, classes=narrow.classes)
    learned, choosing = tuning_images(data, options.seed)
    stated = TrainOptions(
        data=data.name,
        arch=narrow.arch,
        recipe="prune",
        device=options.device,
        seed=options.seed,
        workers=options.workers,
        resume=StateFile(training_folder(path)).exists,
        **given,
    )
    if data.source.file(0) is None:
        stated = TrainOptions.of(stated, {"augment": "shift"})
    subject = TaughtSubject()
    job = TrainingJob(
        subject=subject,
        settings=subject.complete(stated, learned, narrow),
        data=learned,
        held_out=choosing,
        init=narrow,
        num_classes=narrow.num_classes,
        teacher=teacher,
        keeps_best=True,
    )
    return train_job(job, path, cache=cache, progress=progress)
