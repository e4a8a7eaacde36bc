"""Keras in a process of its own: loads a model and computes logits of batches.

Uses TensorFlow, PyTorch or JAX, in this order, as far as they are installed; ``KERAS_BACKEND`` decides
otherwise. Models are loaded in Keras's safe mode, which refuses code in a file, and run on the CPU.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, BinaryIO

from optimizer.processes.frames import receive, send

__all__ = ["LIBRARY_MISSING", "serve"]

LIBRARY_MISSING = "missing"
"""Kind of the answer if Keras or a library that computes for it is not installed."""
_BACKENDS = {"tensorflow": "tensorflow", "torch": "torch", "jax": "jax"}


def serve(
    path: str, application: Mapping[str, Any] | None, requests: BinaryIO, answers: BinaryIO
) -> None:
    """Load a model, describe it, then answer every batch with its outputs.

    A batch is ``(shape, bytes)`` of float32, N x H x W x 3, as the model's input takes it; so is the
    answer, N x classes. Every answer is a pair: its kind (``ready``, ``outputs``, ``failed`` or
    `LIBRARY_MISSING`) and its content.

    Args:
        path: The file.
        application: For a file with weights only: ``name`` in ``keras.applications``, ``classes``
            and ``size`` in pixels. ``None`` for a whole model.
        requests: Batches.
        answers: Answers.
    """
    try:
        keras, facts = _library()
        model = _load(keras, path, application)
        run, facts["probabilities"] = _logits(keras, model)
        facts["input_shape"] = tuple(model.inputs[0].shape)
    except ImportError as error:
        return _answer(answers, LIBRARY_MISSING, str(error))
    except Exception as error:  # noqa: BLE001 - the parent decides what it means
        return _answer(answers, "failed", f"{type(error).__name__}: {error}")
    _answer(answers, "ready", facts)
    import numpy as np

    while (request := receive(requests)) is not None:
        shape, data = request
        try:
            outputs = run(np.frombuffer(data, np.float32).reshape(shape))
        except Exception as error:  # noqa: BLE001
            return _answer(answers, "failed", f"{type(error).__name__}: {error}")
        _answer(answers, "outputs", (outputs.shape, outputs.tobytes()))
    return None


def _answer(answers: BinaryIO, kind: str, content: Any) -> None:
    send(answers, pickle.dumps((kind, content)))


def _library() -> tuple[Any, dict[str, Any]]:
    """Keras with a backend, and the versions of both."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "KERAS_BACKEND" not in os.environ:
        found = next((name for name in _BACKENDS if find_spec(name) is not None), None)
        if found is None:
            raise ImportError("none of TensorFlow, PyTorch and JAX is installed")
        os.environ["KERAS_BACKEND"] = found
    import importlib

    import keras

    backend = keras.backend.backend()
    library = importlib.import_module(_BACKENDS.get(backend, backend))
    version = f"{backend} {getattr(library, '__version__', '')}".strip()
    return keras, {"keras": keras.__version__, "backend": version}


def _load(keras: Any, path: str, application: Mapping[str, Any] | None) -> Any:
    if application is None:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    size = application["size"]
    model = getattr(keras.applications, application["name"])(
        weights=None, classes=application["classes"], input_shape=(size, size, 3)
    )
    model.load_weights(path)
    return model


def _logits(keras: Any, model: Any) -> tuple[Any, bool]:
    """A function that computes the outputs before a softmax, and whether they are probabilities.

    One output with a sigmoid becomes two logits, 0 and that of the sigmoid.
    """
    import numpy as np

    last = model.layers[-1]
    while hasattr(last, "layers"):
        last = last.layers[-1]
    ending = getattr(getattr(last, "activation", None), "__name__", "linear")
    if type(last).__name__ == "Softmax":
        model = keras.Model(model.inputs, last.input)
    elif ending in {"softmax", "log_softmax", "sigmoid"}:
        last.activation = keras.activations.linear
    one_output = ending == "sigmoid" and model.outputs[0].shape[-1] == 1

    def run(batch: Any) -> Any:
        outputs = keras.ops.convert_to_numpy(model(batch, training=False)).astype(np.float32)
        return np.concatenate([np.zeros_like(outputs), outputs], axis=1) if one_output else outputs

    return run, ending == "sigmoid" and not one_output
