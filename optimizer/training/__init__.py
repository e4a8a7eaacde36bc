"""Training and fine-tuning ResNets."""

from optimizer.training.classification_task import top1
from optimizer.training.devices import check_versions, device_of
from optimizer.training.distribution import world_of_environment
from optimizer.training.pruning import check_sparsity
from optimizer.training.quantized_training import (
    QuantizedJob,
    check_quantized_options,
    quantized_settings,
    train_quantized,
    write_encodings,
    write_float_graph,
)
from optimizer.training.sources import held_out_of, open_training_data, preprocessing_for
from optimizer.training.stopping import Stopped
from optimizer.training.trainer import TrainingResult, train, train_checkpoint, training_folder
from optimizer.training.training_job import DEFAULT_ARCH
from optimizer.training.training_state import check_folder

__all__ = [
    "DEFAULT_ARCH",
    "QuantizedJob",
    "Stopped",
    "TrainingResult",
    "check_folder",
    "check_quantized_options",
    "check_sparsity",
    "check_versions",
    "device_of",
    "held_out_of",
    "open_training_data",
    "preprocessing_for",
    "quantized_settings",
    "top1",
    "train",
    "train_checkpoint",
    "train_quantized",
    "training_folder",
    "world_of_environment",
    "write_encodings",
    "write_float_graph",
]
