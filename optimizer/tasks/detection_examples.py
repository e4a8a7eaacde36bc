"""Images for a report, with the detections that the reference and the engines have there."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset
from optimizer.errors import DataError
from optimizer.results import ExampleImage, MarkedBox
from optimizer.tasks.boxes import Detections
from optimizer.tasks.detection_tally import changed_detections

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["examples"]

_IMAGES = 4
_LARGEST_SIDE = 320
_QUALITY = 80


def examples(
    found: Mapping[str, Mapping[int, Detections]],
    dataset: ImageDataset,
    names: Sequence[str],
    threshold: float,
) -> list[ExampleImage]:
    """The images whose detections change most, and of equals those with most detections.

    Args:
        found: By hop, the reference first, and position in the dataset.
        dataset: The images.
        names: Of the classes.
        threshold: Score from which detections count.

    Returns:
        At most four; fewer if images cannot be shown, such as those of an NPZ file that were
        preprocessed elsewhere.
    """
    first, *engines = found
    reference = {index: d.above(threshold) for index, d in found[first].items()}
    marked: dict[int, dict[str, list[MarkedBox]]] = {index: {} for index in reference}
    for name in engines:
        for index, detections in found[name].items():
            after = detections.above(threshold)
            marked[index][name] = _marked(reference[index], after, names)

    def rank(index: int) -> tuple[int, int]:
        boxes = [box for own in marked[index].values() for box in own]
        return sum(box.change != "kept" for box in boxes), len(reference[index].scores)

    shown: list[ExampleImage] = []
    for index in sorted(marked, key=rank, reverse=True):
        if len(shown) == _IMAGES:
            break
        try:
            image = dataset.source.image(int(dataset.positions[index]))
        except DataError:
            continue
        shown.append(
            ExampleImage(
                name=dataset.image_id(index),
                width=image.width,
                height=image.height,
                jpeg=_encoded(image),
                reference=_boxes(reference[index], names, "kept"),
                engines=marked[index],
            )
        )
    return shown


def _marked(before: Detections, after: Detections, names: Sequence[str]) -> list[MarkedBox]:
    """Everything that the other network has, and what it lost."""
    lost, new, _ = changed_detections(before, after)
    return [
        *_boxes(_part(after, ~new), names, "kept"),
        *_boxes(_part(after, new), names, "new"),
        *_boxes(_part(before, lost), names, "lost"),
    ]


def _part(found: Detections, chosen: NDArray[np.bool_]) -> Detections:
    return Detections(found.boxes[chosen], found.scores[chosen], found.classes[chosen])


def _boxes(found: Detections, names: Sequence[str], change: str) -> list[MarkedBox]:
    return [
        MarkedBox(
            box=(box[0], box[1], box[2], box[3]),
            name=names[label],
            score=score,
            change=change,
        )
        for box, score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
        )
    ]


def _encoded(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode("ascii")
