"""What a detector that PyTorch runs finds in a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset, Preprocessing
from optimizer.tasks.boxes import BoxReader, Detections

if TYPE_CHECKING:
    from torch import nn

__all__ = ["find_objects"]

_BATCH = 16


def find_objects(
    module: nn.Module,
    reader: BoxReader,
    preprocessing: Preprocessing,
    data: ImageDataset,
    indices: NDArray[np.int64],
) -> list[Detections]:
    """Detections in some images of a dataset, in their order.

    Args:
        module: The detector in evaluation mode; its outputs are those of `DetectorSpec`.
        reader: Turns the outputs into boxes.
        preprocessing: Preprocessing of the network.
        data: Images with objects.
        indices: The images, int64.

    Raises:
        DataError: An image cannot be read.
    """
    import torch

    assert data.objects is not None
    device = next(module.parameters()).device
    found: list[Detections] = []
    for batch in data.batches(_BATCH, preprocessing, order=indices):
        with torch.inference_mode():
            outputs = module(torch.from_numpy(batch.images).to(device)).float().cpu().numpy()
        for raw, index in zip(outputs, batch.indices.tolist(), strict=True):
            found.append(reader.read(raw, data.objects[index].size))
    return found
