"""The result of ``predict``."""

from __future__ import annotations

from optimizer.results.result_model import Model

__all__ = ["Prediction"]


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
