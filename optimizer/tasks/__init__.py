"""What a network is for: how its outputs are read, which metric and which paired test judge them."""

from optimizer.data import Preprocessing
from optimizer.models import DetectorSpec
from optimizer.tasks.classification import Classification
from optimizer.tasks.detection import Detection
from optimizer.tasks.task import Task

__all__ = ["Classification", "Detection", "Task", "task_of"]


def task_of(detector: DetectorSpec | None, preprocessing: Preprocessing) -> Task:
    """The task of a network.

    Args:
        detector: How its outputs become boxes; ``None`` for a classifier.
        preprocessing: The preprocessing of its images.
    """
    return Classification() if detector is None else Detection(detector, preprocessing)
