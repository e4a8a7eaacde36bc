"""How a detector's raw outputs become boxes: anchors, box coding and thresholds, as plain data.

The outputs are one tensor, N x anchors x (4 + K) with K class logits for RetinaNet (Lin et al. 2017)
and N x anchors x (4 + 1 + K) with a centerness logit for FCOS (Tian et al. 2019). Values are raw: box
deltas or distances and logits, before any sigmoid. Anchors are torchvision's, level by level, row by
row; they depend on the size of the input, which is therefore part of the description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import GraphError

__all__ = ["DETECTOR_KINDS", "STRIDES", "DetectorSpec"]

DETECTOR_KINDS = ("retinanet", "fcos")
STRIDES = (8, 16, 32, 64, 128)
"""Of the levels P3 to P7, which both kinds use."""
_SIZES = {
    "retinanet": tuple(
        (size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3)))
        for size in (32, 64, 128, 256, 512)
    ),
    "fcos": ((8,), (16,), (32,), (64,), (128,)),
}
_RATIOS = {"retinanet": (0.5, 1.0, 2.0), "fcos": (1.0,)}
_THRESHOLDS = {"retinanet": (0.05, 0.5, 300), "fcos": (0.2, 0.6, 100)}
"""torchvision's defaults: smallest score, IoU of NMS, detections per image."""


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """Description of a detector's outputs.

    Attributes:
        kind: One of `DETECTOR_KINDS`.
        image_size: Side of the network's input, pixels.
        num_classes: Number of class logits, K.
        strides: Pixels between two anchor positions of each level.
        sizes: Anchor sizes of each level, pixels.
        ratios: Height over width of the anchors at each position.
        score_threshold: Boxes with smaller scores are dropped.
        nms_threshold: Of two boxes of a class with a larger IoU, only the better one stays.
        candidates: Largest number of boxes per level before NMS.
        max_detections: Largest number of boxes per image after NMS.
    """

    kind: Literal["retinanet", "fcos"]
    image_size: int
    num_classes: int
    strides: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    ratios: tuple[float, ...]
    score_threshold: float
    nms_threshold: float
    candidates: int = 1000
    max_detections: int

    @classmethod
    def of(cls, kind: str, image_size: int, num_classes: int) -> DetectorSpec:
        """The description with torchvision's anchors and thresholds.

        Args:
            kind: One of `DETECTOR_KINDS`.
            image_size: Side of the network's input, pixels.
            num_classes: Number of class logits.
        """
        score, nms, detections = _THRESHOLDS[kind]
        return cls(
            kind=kind,  # type: ignore[arg-type]
            image_size=image_size,
            num_classes=num_classes,
            strides=STRIDES,
            sizes=_SIZES[kind],
            ratios=_RATIOS[kind],
            score_threshold=score,
            nms_threshold=nms,
            max_detections=int(detections),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectorSpec:
        """The inverse of `to_dict`.

        Raises:
            GraphError: Fields are missing or unknown.
        """
        if set(values) == {field.name for field in fields(cls)}:
            kind = values["kind"]
            if kind in DETECTOR_KINDS:
                tuples = {
                    "strides": tuple(values["strides"]),
                    "sizes": tuple(tuple(sizes) for sizes in values["sizes"]),
                    "ratios": tuple(values["ratios"]),
                }
                return cls(**{**values, **tuples})
        raise GraphError(
            "the description of the detector's outputs is damaged, or from another version",
            hint="export the model again",
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable mapping of all fields."""
        values = asdict(self)
        return {
            **values,
            "strides": list(self.strides),
            "sizes": [list(sizes) for sizes in self.sizes],
            "ratios": list(self.ratios),
        }

    # --- shapes --------------------------------------------------------------------------------

    @property
    def box_values(self) -> int:
        """Values per anchor before the class logits: 4, or 5 with centerness."""
        return 5 if self.kind == "fcos" else 4

    @property
    def grids(self) -> tuple[int, ...]:
        """Anchor positions per side of each level."""
        return tuple(math.ceil(self.image_size / stride) for stride in self.strides)

    @property
    def anchors_per_level(self) -> tuple[int, ...]:
        """Number of anchors of each level."""
        return tuple(
            grid * grid * len(sizes) * len(self.ratios)
            for grid, sizes in zip(self.grids, self.sizes, strict=True)
        )

    @property
    def output_shape(self) -> tuple[int, int]:
        """Anchors and values per anchor."""
        return sum(self.anchors_per_level), self.box_values + self.num_classes

    def anchors(self) -> NDArray[np.float32]:
        """All anchors in the order of the outputs, A x 4: left, top, right, bottom in pixels.

        As in torchvision, positions are multiples of the image size divided by the grid's, rounded
        down, and cells are rounded to whole pixels.
        """
        levels = []
        for grid, sizes in zip(self.grids, self.sizes, strict=True):
            height_ratio = np.sqrt(np.array(self.ratios, np.float32))
            scales = np.array(sizes, np.float32)
            widths = (1 / height_ratio[:, None] * scales).ravel()
            heights = (height_ratio[:, None] * scales).ravel()
            cells = np.round(np.stack([-widths, -heights, widths, heights], axis=1) / 2)
            steps = np.arange(grid, dtype=np.float32) * (self.image_size // grid)
            y, x = np.meshgrid(steps, steps, indexing="ij")
            shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
            levels.append((shifts + cells).reshape(-1, 4))
        return np.concatenate(levels).astype(np.float32)
