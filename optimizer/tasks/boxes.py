"""Reading a detector's raw outputs: decoding, selection and NMS, the same function for every engine.

The order of steps is torchvision's: boxes below the threshold are dropped, the best candidates of each
level are decoded and clipped to the image, and non-maximum suppression per class keeps the best ones.
The threshold is compared with logits, so that only candidates pass through a sigmoid. Unlike torchvision,
boxes that clipping leaves thinner than half a pixel of the input are dropped at the end: they overlap
with nothing, so they would be false detections that no other network could confirm.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Preprocessing
from optimizer.models import DetectorSpec

__all__ = ["BoxReader", "Detections", "iou_matrix"]

_LARGEST_SCALING = math.log(1000 / 16)
"""Limit of RetinaNet's logarithmic size deltas, as in torchvision."""

_THINNEST = 0.5
"""Smallest side of a box, pixels of the input."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: M x 4 float32: left, top, right, bottom in pixels of the original image.
        scores: M float32, 0 to 1.
        classes: M int64, indices of the network's classes.
    """

    boxes: Float32
    scores: Float32
    classes: NDArray[np.int64]

    def above(self, threshold: float) -> Detections:
        """The detections with at least this score."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])


class BoxReader:
    """Reads outputs of one network.

    Args:
        spec: Description of the outputs.
        preprocessing: The network's preprocessing, a letterbox.
    """

    def __init__(self, spec: DetectorSpec, preprocessing: Preprocessing) -> None:
        self.spec = spec
        self._preprocessing = preprocessing
        self._anchors = spec.anchors()
        ends = np.cumsum(spec.anchors_per_level) * spec.num_classes
        self._level_ends = ends.tolist()

    def read(self, outputs: Float32, size: tuple[int, int]) -> Detections:
        """Detections of one image.

        Args:
            outputs: Anchors x values float32; see `DetectorSpec`.
            size: Width and height of the original image, pixels.
        """
        spec = self.spec
        candidates, scores = self._candidates(outputs)
        anchors, classes = np.divmod(candidates, spec.num_classes)
        boxes = self._decoded(outputs[anchors, :4], self._anchors[anchors])
        fitted = self._preprocessing.fitted_size(*size)
        for axis in (0, 1):
            boxes[:, axis::2] = boxes[:, axis::2].clip(0, fitted[axis])
        keep = _nms(boxes, scores, classes, spec.nms_threshold)[: spec.max_detections]
        keep = keep[(boxes[keep, 2:] - boxes[keep, :2]).min(axis=1, initial=np.inf) >= _THINNEST]
        scale = np.array([size[0] / fitted[0], size[1] / fitted[1]] * 2, np.float32)
        return Detections(boxes[keep] * scale, scores[keep], classes[keep])

    def _candidates(self, outputs: Float32) -> tuple[NDArray[np.int64], Float32]:
        """Positions in the flattened class logits, and their scores; at most so many per level."""
        spec = self.spec
        logits = outputs[:, spec.box_values :].ravel()
        threshold = spec.score_threshold
        if spec.kind == "fcos":  # a score is at most the square root of the class probability
            threshold **= 2
        found = np.flatnonzero(logits > math.log(threshold / (1 - threshold)))
        scores = _sigmoid(logits[found])
        if spec.kind == "fcos":
            scores = np.sqrt(scores * _sigmoid(outputs[found // spec.num_classes, 4]))
        keep = scores > spec.score_threshold
        found, scores = found[keep], scores[keep]
        chosen = []
        borders = [0, *np.searchsorted(found, self._level_ends).tolist()]
        for start, end in itertools.pairwise(borders):
            level = np.arange(start, end)
            if end - start > spec.candidates:
                best = np.argpartition(-scores[start:end], spec.candidates - 1)
                level = start + best[: spec.candidates]
            chosen.append(level)
        positions = np.concatenate(chosen)
        return found[positions].astype(np.int64), scores[positions]

    def _decoded(self, codes: Float32, anchors: Float32) -> Float32:
        widths, heights = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
        x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
        if self.spec.kind == "fcos":  # distances to the four sides, in units of the anchor
            left, top, right, bottom = (
                codes[:, i] * side for i, side in enumerate((widths, heights, widths, heights))
            )
            return np.stack([x - left, y - top, x + right, y + bottom], axis=1)
        x = x + codes[:, 0] * widths
        y = y + codes[:, 1] * heights
        scaling = np.exp(np.minimum(codes[:, 2:], np.float32(_LARGEST_SCALING)))
        half_width, half_height = scaling[:, 0] * widths / 2, scaling[:, 1] * heights / 2
        return np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)


def _sigmoid(values: Float32) -> Float32:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def _nms(
    boxes: Float32, scores: Float32, classes: NDArray[np.int64], threshold: float
) -> NDArray[np.int64]:
    """Indices of the boxes to keep, best first."""
    import torch
    from torchvision.ops import batched_nms

    kept = batched_nms(
        torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), threshold
    )
    return np.asarray(kept.numpy())


def iou_matrix(a: Float32, b: Float32) -> Float32:
    """Intersection over union of each box of ``a`` (M x 4) with each of ``b`` (N x 4), M x N."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    overlap = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None).prod(axis=2)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - overlap
    return np.asarray(overlap / np.maximum(union, 1e-9), np.float32)
