"""A model as the framework computes it that its file comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError
from optimizer.models.model import Model
from optimizer.models.model_sources import source_of_file, source_of_name

__all__ = ["NativeModel", "open_native"]

Array = NDArray[Any]


def _nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class NativeModel:
    """A model with its own framework, or the reason why this package's network computes it.

    Attributes:
        model: The model as this package reads it, which states everything but the outputs.
        executor: What computes it, for results; without `run`, why its framework does not.
        run: Maps a batch to N x classes float32; ``None`` where this package's network computes it.
        takes_uint8: Whether `run` takes pixels (N x H x W x 3 uint8), not N x 3 x H x W float32.
        close: Ends what `run` uses.
    """

    model: Model
    executor: str
    run: Callable[[Array], NDArray[np.float32]] | None = None
    takes_uint8: bool = False
    close: Callable[[], None] = _nothing


def open_native(name: str, model: Model, interpreter: Path | None) -> Model | NativeModel:
    """The framework that a model comes from, if it is not PyTorch.

    Args:
        name: What `load_model` loaded.
        model: The model.
        interpreter: An interpreter that has the framework; ``None`` for this one.

    Returns:
        ``model`` itself if it comes from PyTorch.

    Raises:
        UsageError: An interpreter is given for a model of PyTorch.
        EnvironmentFault: The given interpreter does not have the framework, or cannot be started.
        CheckpointError: The framework of the given interpreter cannot load the model.
    """
    path = Path(name).expanduser()
    source = source_of_file(path) if path.is_file() else source_of_name(name)
    if source is not None and source.native is not None:
        return source.native(name, model, interpreter)
    if interpreter is not None:
        raise UsageError(
            f"--framework-python is for Keras models, and PyTorch computes {name}",
            hint="leave it out",
        )
    return model
