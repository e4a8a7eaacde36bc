"""Training and fine-tuning ResNets."""

from optimizer.training.sources import open_training_data, preprocessing_for
from optimizer.training.trainer import TrainingResult, top1, train, train_checkpoint

__all__ = [
    "TrainingResult",
    "open_training_data",
    "preprocessing_for",
    "top1",
    "train",
    "train_checkpoint",
]
