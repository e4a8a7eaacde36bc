"""Saves a ResNet of ``keras.applications`` and what Keras computes: ``keras_models.py NAME SIZE FOLDER``.

`keras_logits.py` runs this file once per network, with the interpreter of an environment that has
Keras and TensorFlow. The weights are those of `keras_values`. The last line of its output is JSON:
the versions that ran. ``FOLDER`` receives ``model.keras``, ``model.weights.h5`` (only ResNet V1),
``model.onnx`` from ``model.export`` if ``--onnx`` is given, a SavedModel in ``saved_model`` if
``--saved-model`` is given, and ``logits.npy``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from keras_record import fill, logits
from keras_values import images


def network(keras: Any, name: str, size: int, classes: int) -> Any:
    """A network with reproducible weights; V2's are scaled so that activations stay moderate."""
    build = getattr(keras.applications, name)
    model = fill(build(weights=None, classes=classes, input_shape=(size, size, 3)))
    if name.endswith("V2"):
        for layer in model.layers:
            if layer.name.endswith("_3_conv"):
                kernel, *rest = layer.get_weights()
                layer.set_weights([0.3 * kernel, *rest])
    return model


def main() -> None:
    """Save the files and print the versions."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("size", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--saved-model", action="store_true")
    options = parser.parse_args()
    import keras
    import tensorflow

    model = network(keras, options.name, options.size, options.classes)
    module = (
        keras.applications.resnet_v2 if options.name.endswith("V2") else keras.applications.resnet
    )
    pixels = module.preprocess_input(images(options.size).astype(np.float32))
    model.save(options.folder / "model.keras")
    if not options.name.endswith("V2"):
        model.save_weights(options.folder / "model.weights.h5")
    np.save(options.folder / "logits.npy", logits(keras, model, pixels))
    seconds = None
    if options.onnx:
        started = time.perf_counter()
        model.export(options.folder / "model.onnx", format="onnx", verbose=False)
        seconds = time.perf_counter() - started
    if options.saved_model:
        model.export(options.folder / "saved_model", verbose=False)
    versions = {"keras": keras.__version__, "tensorflow": tensorflow.__version__}
    print(json.dumps({"versions": versions, "export_s": seconds}))


if __name__ == "__main__":
    main()
