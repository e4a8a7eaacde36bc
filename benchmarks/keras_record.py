"""Records what Keras saves and computes, as small files for the tests.

Run it with an interpreter that has Keras and TensorFlow::

    python3 -m venv ../peers/keras && ../peers/keras/bin/pip install keras tensorflow-cpu tf_keras tf2onnx
    ../peers/keras/bin/python benchmarks/keras_record.py [models] [graphs]

Weights of models are left out: they come from `keras_values`. What is recorded of them is the
configuration, the names of groups, datasets and attributes in the HDF5 file, and the logits of three
images. Graphs are ONNX files that Keras exports of narrow networks, with the logits of three images.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from keras_values import images, values

SIZE = 64
TESTS = Path(__file__).parent.parent / "tests"
FOLDER = TESTS / "models" / "recorded"
GRAPHS = TESTS / "graphs" / "recorded"


def fill(model: Any) -> Any:
    """Give every layer the weights of `keras_values`."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            fill(layer)
        elif layer.weights and not type(layer).__name__.startswith("Random"):
            names = [w.name.rpartition("/")[2].partition(":")[0] for w in layer.weights]
            layer.set_weights(
                [
                    values(layer.name, name, tuple(weight.shape))
                    for name, weight in zip(names, layer.weights, strict=True)
                ]
            )
    return model


def application(keras: Any) -> Any:
    """``keras.applications.ResNet50`` as it is."""
    return keras.applications.ResNet50(weights=None, classes=10, input_shape=(SIZE, SIZE, 3))


def transfer(keras: Any) -> Any:
    """Transfer learning as in Keras's guide: normalization, augmentation, backbone, own head."""
    layers = keras.layers
    start = keras.Input((SIZE, SIZE, 3), name="pixels")
    x = keras.applications.resnet50.preprocess_input(start)
    x = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)], name="augment")(x)
    backbone = keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    x = layers.GlobalAveragePooling2D(name="pool")(backbone(x, training=False))
    x = layers.BatchNormalization(name="head_bn")(x)
    x = layers.Dense(32, activation="relu", name="hidden")(x)
    x = layers.Dropout(0.2, name="drop")(x)
    return keras.Model(start, layers.Dense(10, activation="softmax", name="classes")(x))


def sequential(keras: Any) -> Any:
    """A Sequential with a Rescaling and a nested backbone with pooling."""
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale"),
            keras.applications.ResNet50(
                weights=None, include_top=False, pooling="avg", input_shape=(SIZE, SIZE, 3)
            ),
            keras.layers.Dense(10, name="classes"),
        ]
    )


def logits(keras: Any, model: Any, pixels: Any) -> Any:
    """What the model computes before its softmax."""
    model.layers[-1].activation = keras.activations.linear
    return np.asarray(model(pixels, training=False))


def layout(path: Path) -> dict[str, Any]:
    """What is in a file besides the numbers."""
    import h5py

    config: Any = None
    content: Any = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            content = io.BytesIO(archive.read("model.weights.h5"))
    attributes: dict[str, dict[str, Any]] = {}
    datasets: dict[str, list[int]] = {}

    def visit(name: str, item: Any) -> None:
        found = {
            key: [str(v, "utf-8") if isinstance(v, bytes) else str(v) for v in value]
            if isinstance(value, np.ndarray)
            else str(value)
            for key, value in item.attrs.items()
        }
        if found or not hasattr(item, "shape"):
            attributes[name] = found
        if hasattr(item, "shape"):
            datasets[name] = list(item.shape)

    with h5py.File(content, "r") as file:
        visit("", file)
        file.visititems(visit)
    return {"config": config, "attributes": attributes, "datasets": datasets}


def record(keras: Any, name: str, build: Any, suffixes: list[str]) -> None:
    """Save one model in several formats and write what is in them."""
    keras.backend.clear_session()
    model = fill(build(keras))
    pixels = images(SIZE).astype(np.float32)
    if build is application:
        pixels = keras.applications.resnet50.preprocess_input(pixels)
    found: dict[str, Any] = {"keras": keras.__version__, "files": {}}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in suffixes:
            path = Path(folder, f"model{suffix}")
            (model.save_weights if suffix == ".weights.h5" else model.save)(str(path))
            found["files"][suffix] = layout(path)
    found["logits"] = logits(keras, model, pixels).tolist()
    data = gzip.compress(json.dumps(found).encode(), mtime=0)
    (FOLDER / f"{name}.json.gz").write_bytes(data)
    print(f"{name}: {len(data):,} bytes, Keras {keras.__version__}")


def narrow(version: str, size: int = 32) -> Any:
    """A ResNet of two stages and few channels, made by Keras's own functions; it ends in logits."""
    from keras.src.applications import resnet

    stack = getattr(resnet, f"stack_residual_blocks_{version}")
    pre_activation = version == "v2"

    def stages(x: Any) -> Any:
        x = stack(x, 8, 2, name="conv2", **({"stride1": 1} if version == "v1" else {}))
        return stack(x, 16, 2, name="conv3", **({"stride1": 1} if version == "v2" else {}))

    return fill(
        resnet.ResNet(
            stages,
            pre_activation,
            True,
            weights=None,
            input_shape=(size, size, 3),
            classes=5,
            classifier_activation=None,
        )
    )


def record_graph(keras: Any, version: str) -> None:
    """Export a narrow network to ONNX as Keras does it, with what Keras computes."""
    keras.backend.clear_session()
    model = narrow(version)
    path = GRAPHS / f"keras-{version}.onnx"
    pixels = images(32).astype(np.float32) / 127.5 - 1
    found = {"keras": keras.__version__, "logits": logits(keras, model, pixels).tolist()}
    model.export(str(path), format="onnx", verbose=False)
    path.with_suffix(".json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size:,} bytes, Keras {keras.__version__}")


def record_models(keras: Any) -> None:
    """Record all models with Keras 3, and two with Keras 2's successor tf_keras."""
    FOLDER.mkdir(exist_ok=True)
    record(keras, "application", application, [".keras", ".h5", ".weights.h5"])
    record(keras, "transfer", transfer, [".keras", ".h5"])
    record(keras, "sequential", sequential, [".keras", ".weights.h5"])
    import tf_keras

    record(tf_keras, "application-keras2", application, [".keras", ".h5", ".weights.h5"])
    record(tf_keras, "transfer-keras2", transfer, [".h5"])


def main(kinds: list[str]) -> None:
    """Record models, graphs, or both."""
    import keras

    if "models" in kinds:
        record_models(keras)
    if "graphs" in kinds:
        GRAPHS.mkdir(exist_ok=True)
        for version in ("v1", "v2"):
            record_graph(keras, version)


if __name__ == "__main__":
    main(sys.argv[1:] or ["models", "graphs"])
