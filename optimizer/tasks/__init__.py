"""What a network is for: how its outputs are read, which metric and which paired test judge them."""

from optimizer.tasks.classification import Classification
from optimizer.tasks.task import Task

__all__ = ["Classification", "Task"]
