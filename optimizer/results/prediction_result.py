"""The result of ``predict``."""

from __future__ import annotations

from optimizer.results.result_model import Model

__all__ = ["DetectionPrediction", "FoundObject", "Prediction"]


class Prediction(Model):
    """The most probable classes of one image, best first.

    Attributes:
        image: The file.
        classes: Names of the classes.
        indices: Their indices in the network's output.
        probabilities: Fractions of one.
    """

    image: str
    classes: list[str]
    indices: list[int]
    probabilities: list[float]


class FoundObject(Model):
    """One detection.

    Attributes:
        name: Name of the class.
        index: Its index in the network's outputs.
        score: 0 to 1.
        box: Left, top, right and bottom, pixels of the image.
    """

    name: str
    index: int
    score: float
    box: tuple[float, float, float, float]


class DetectionPrediction(Model):
    """What a detector finds in one image, best first.

    Attributes:
        image: The file.
        width, height: Its size, pixels.
        objects: Detections from the threshold on.
        annotated: The image with its boxes, if it was written.
    """

    image: str
    width: int
    height: int
    objects: list[FoundObject]
    annotated: str | None = None
