"""The accuracy of a trained detector on its own, without comparing it with anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimizer.data import ImageDataset
from optimizer.progress import Progress, Silent
from optimizer.tasks.average_precision import MatchTables, match_objects
from optimizer.tasks.boxes import BoxReader
from optimizer.tasks.detection_classes import match_categories

if TYPE_CHECKING:
    from optimizer.models import Model

__all__ = ["detector_matches"]

_BATCH = 16


def detector_matches(
    model: Model, data: ImageDataset, progress: Progress | None = None
) -> MatchTables:
    """Matches of a detector, run by PyTorch, with the objects of a dataset.

    Args:
        model: The detector.
        data: Images with objects.
        progress: Receives progress updates per batch.

    Raises:
        DataError: The categories do not match the detector's classes.
    """
    import torch

    assert model.detector is not None
    progress = progress or Silent()
    data = match_categories(data, model.num_classes, model.classes)
    assert data.objects is not None
    reader = BoxReader(model.detector, model.preprocessing)
    found, objects = [], []
    progress.start("measure AP", total=len(data))
    for batch in data.batches(_BATCH, model.preprocessing):
        with torch.inference_mode():
            outputs = model.module(torch.from_numpy(batch.images)).numpy()
        for raw, index in zip(outputs, np.asarray(batch.indices).tolist(), strict=True):
            objects.append(data.objects[index])
            found.append(reader.read(raw, data.objects[index].size))
        progress.advance(len(batch.indices))
    progress.finish()
    return match_objects(objects, found, model.num_classes)
