"""Training a detector, for the verb ``train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache
from optimizer.options import TrainOptions
from optimizer.progress import Progress
from optimizer.verbs.outcomes import TrainResult

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.models import Model

__all__ = ["train_detector"]


def train_detector(
    options: TrainOptions,
    output: Path,
    init: Model | None,
    *,
    cache: Cache | None,
    progress: Progress | None,
) -> TrainResult:
    """Train a detector and measure its AP; see `optimizer.verbs.train.train`.

    Args:
        options: Those of ``train``.
        output: The checkpoint file.
        init: The model to start from.
        cache: Artifact cache; ``None`` for no cache.
        progress: Receives progress updates.
    """
    from optimizer.data import open_dataset
    from optimizer.tasks.detection_accuracy import detector_matches
    from optimizer.training.detection_training import (
        detection_options,
        train_detector_checkpoint,
    )

    settings = detection_options(options)

    def read(name: str) -> ImageDataset:
        images = open_dataset(
            name,
            skip_bad_images=options.skip_bad_images,
            workers=options.workers,
            image_folder=options.image_folder if name.lower().endswith(".json") else None,
        )
        return images.verify() if options.skip_bad_images else images

    def measure(model: Model, images: ImageDataset) -> dict[str, float]:
        matches = detector_matches(model, images, progress)
        return {"ap": float(matches.mean()[0]), "ap50": float(matches.mean(iou=0.5)[0])}

    held_out = options.val
    if held_out is None and options.data == "digits-scenes:train":
        held_out = "digits-scenes:test"
    artifact = train_detector_checkpoint(
        settings,
        read(options.data),
        output,
        held_out=read(held_out) if held_out else None,
        init=init,
        measure=measure,
        cache=cache,
        progress=progress,
    )
    details = artifact.manifest.details
    return TrainResult.of(artifact, ap=details.get("ap"), ap50=details.get("ap50"))
