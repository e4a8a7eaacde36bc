"""Detections of several images as arrays with one row per image, to be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.tasks.boxes import Detections

__all__ = ["pack_detections", "unpack_detections"]


def pack_detections(found: Sequence[Detections]) -> dict[str, NDArray[Any]]:
    """``counts``, ``boxes``, ``scores`` and ``classes``; rows are as long as the longest needs."""
    counts = np.array([len(detections.scores) for detections in found], np.int64)
    longest = int(counts.max(initial=0))
    boxes = np.zeros((len(found), longest, 4), np.float32)
    scores = np.zeros((len(found), longest), np.float32)
    classes = np.zeros((len(found), longest), np.int64)
    for row, detections in enumerate(found):
        boxes[row, : counts[row]] = detections.boxes
        scores[row, : counts[row]] = detections.scores
        classes[row, : counts[row]] = detections.classes
    return {"counts": counts, "boxes": boxes, "scores": scores, "classes": classes}


def unpack_detections(arrays: Mapping[str, NDArray[Any]]) -> list[Detections]:
    """The inverse of `pack_detections`."""
    return [
        Detections(boxes[:count], scores[:count], classes[:count])
        for count, boxes, scores, classes in zip(
            arrays["counts"].tolist(), arrays["boxes"], arrays["scores"], arrays["classes"],
            strict=True,
        )
    ]  # fmt: skip
