"""Training and fine-tuning ResNets."""

from optimizer.training.classification_task import top1
from optimizer.training.devices import check_versions, device_of
from optimizer.training.distribution import world_of_environment
from optimizer.training.sources import open_training_data, preprocessing_for
from optimizer.training.stopping import Stopped
from optimizer.training.trainer import TrainingResult, train, train_checkpoint, training_folder
from optimizer.training.training_state import check_folder

__all__ = [
    "Stopped",
    "TrainingResult",
    "check_folder",
    "check_versions",
    "device_of",
    "open_training_data",
    "preprocessing_for",
    "top1",
    "train",
    "train_checkpoint",
    "training_folder",
    "world_of_environment",
]
