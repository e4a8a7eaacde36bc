"""Runs a Keras model with Keras, in a process of its own and perhaps in another environment.

A validation can then compare with what the user's own framework computes, not only with the network
that this package made of the file.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import CheckpointError, MissingLibrary
from optimizer.frameworks.keras_process import LIBRARY_MISSING
from optimizer.models.model import Model
from optimizer.models.native import NativeModel
from optimizer.processes import Child
from optimizer.processes.frames import receive, send

__all__ = ["KerasFacts", "run_keras"]

Array = NDArray[Any]
_DEADLINE_S = 900.0
"""For loading, and for each batch: TensorFlow alone may take half a minute to load."""
_HOW_TO_INSTALL = (
    "install it (pip install keras), or name an interpreter that has it: --framework-python"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KerasFacts:
    """What Keras needs to know about a file.

    Attributes:
        path: The file.
        application: Name in ``keras.applications`` for a file with weights only, else ``None``.
        normalizes: Whether the model itself normalizes its images, which are RGB from 0 to 255.
    """

    path: Path
    application: str | None
    normalizes: bool


def run_keras(facts: KerasFacts, model: Model, interpreter: Path | None) -> NativeModel:
    """Load a model in Keras; see `open_native`."""
    if interpreter is None and find_spec("keras") is None:
        return _own(model, "Keras is not installed")
    try:
        runner = _Runner(facts, model, interpreter)
    except (MissingLibrary, CheckpointError) as error:
        if interpreter is not None:
            raise
        return _own(model, error.message)
    return NativeModel(
        model=model,
        executor=f"Keras {runner.facts['keras']} ({runner.facts['backend']}), FP32",
        run=runner.run,
        takes_uint8=facts.normalizes,
        close=runner.close,
    )


def _own(model: Model, reason: str) -> NativeModel:
    _log.warning("%s: the converted network is the reference, because %s", model.source, reason)
    return NativeModel(model=model, executor=f"the converted weights, not Keras: {reason}")


class _Runner:
    """A child that computes a model with Keras."""

    def __init__(self, facts: KerasFacts, model: Model, interpreter: Path | None) -> None:
        self._source, self._facts, self._model = model.source, facts, model
        self._interpreter = "this interpreter" if interpreter is None else str(interpreter)
        application = None
        if facts.application is not None:
            application = {
                "name": facts.application,
                "classes": model.num_classes,
                "size": model.image_size,
            }
        self._child = Child(
            "optimizer.frameworks.keras_process:serve",
            [str(facts.path.absolute()), application],
            interpreter=None if interpreter is None else str(interpreter),
        )
        try:
            self.facts: Mapping[str, Any] = self._answer("ready")
            self._check_size(self.facts["input_shape"])
        except BaseException:
            self.close()
            raise

    def run(self, batch: Array) -> NDArray[np.float32]:
        """N x classes logits of a batch: uint8 pixels, or N x 3 x H x W float32."""
        if batch.dtype == np.uint8:  # the model normalizes RGB itself
            pixels = batch[..., ::-1] if self._model.preprocessing.color == "BGR" else batch
            images = np.ascontiguousarray(pixels, np.float32)
        else:
            images = np.ascontiguousarray(batch.transpose(0, 2, 3, 1), np.float32)
        send(self._child.requests, pickle.dumps((images.shape, images.tobytes())))
        shape, data = self._answer("outputs")
        return np.frombuffer(data, np.float32).reshape(shape)

    def close(self) -> None:
        """End the child."""
        self._child.end()

    def _answer(self, wanted: str) -> Any:
        self._child.wait_policy.deadline = time.monotonic() + _DEADLINE_S
        try:
            message = receive(self._child.answers)
        except (TimeoutError, ValueError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"Keras does not answer for {self._source}: {type(error).__name__}"
            ) from error
        if message is None:
            failure = self._child.failure()
            raise MissingLibrary(
                f"{self._interpreter} cannot run Keras: it {failure.message}",
                hint="it needs Python 3.11 or later with keras, numpy and tensorflow, torch or jax",
            )
        kind, content = message
        if kind == wanted:
            return content
        if kind == LIBRARY_MISSING:
            raise MissingLibrary(
                f"{self._interpreter} cannot run Keras: {content}", hint=_HOW_TO_INSTALL
            )
        raise CheckpointError(
            f"Keras cannot run {self._source}: {' '.join(str(content).split())[:300]}",
            hint="leave out --framework-python: then the converted network is the reference",
        )

    def _check_size(self, shape: tuple[int | None, ...]) -> None:
        size = self._model.image_size
        if any(side not in (None, size) for side in shape[1:3]):
            raise CheckpointError(
                f"{self._source} takes images of {shape[1]} x {shape[2]} in Keras, not of {size} x {size}",
                hint="leave out --image-size, or --framework-python",
            )
