"""ResNets with weights, classes and preprocessing: loading from many sources, saving checkpoints."""

from optimizer.models.architectures import ARCHITECTURES, DETECTORS, build_module
from optimizer.models.checkpoint import load_checkpoint, save_checkpoint, write_weights
from optimizer.models.detector_spec import DetectorSpec
from optimizer.models.heads import build_head, hidden_sizes
from optimizer.models.model import Model, weights_digest
from optimizer.models.narrow import Widths
from optimizer.models.zoo import is_model, load_model

__all__ = [
    "ARCHITECTURES",
    "DETECTORS",
    "DetectorSpec",
    "Model",
    "Widths",
    "build_head",
    "build_module",
    "hidden_sizes",
    "is_model",
    "load_checkpoint",
    "load_model",
    "save_checkpoint",
    "weights_digest",
    "write_weights",
]
