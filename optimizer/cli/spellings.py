"""Other spellings of the flags of ``train``, as training scripts commonly have them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["translated"]

_TRAIN = {
    "--model_path": "--output",
    "--num_epochs": "--epochs",
    "--train_data_path": "--data",
    "--test_data_path": "--val",
    "--batch_size": "--batch-size",
    "--lr_decay_rate": "--lr-decay-rate",
    "--weight_decay": "--weight-decay",
    "--CUDA_VERSION": "--min-cuda",
    "--cuda_version": "--min-cuda",
    "--cudnn_version": "--min-cudnn",
    "--python_version": "--min-python",
    "--hidden_size": "--hidden-size",
    "--num_layers": "--hidden-layers",
    "--num_features": "--channels",
    "--sync-bn": "--sync-batchnorm",
}


def translated(tokens: Sequence[str]) -> list[str]:
    """The command line with this program's names of the flags."""
    command = next((token for token in tokens if not token.startswith("-")), None)
    if command != "train":
        return list(tokens)
    result = []
    for token in tokens:
        name, equals, value = token.partition("=")
        result.append(f"{_TRAIN.get(name, name)}{equals}{value}")
    return result
