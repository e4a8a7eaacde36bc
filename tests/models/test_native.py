"""Keras models computed by Keras itself, in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from keras_values import images

from optimizer.data import Preprocessing
from optimizer.errors import CheckpointError, EnvironmentFault, MissingLibrary, UsageError
from optimizer.evaluation.reference import open_reference
from optimizer.models import Model, keras_running, load_model
from optimizer.models.keras_running import KerasFacts, run_keras
from optimizer.models.native import NativeModel, open_native
from optimizer.processes import Child
from optimizer.processes.frames import receive, send

from .keras_files import logits, write_keras

OTHER = os.environ.get("RESNET_OPT_TF_PYTHON")
"""An interpreter with Keras, usually of another environment."""
NO_KERAS = "Keras is neither installed here nor named: RESNET_OPT_TF_PYTHON=…/bin/python"
needs_keras = pytest.mark.skipif(OTHER is None and find_spec("keras") is None, reason=NO_KERAS)
KERAS = None if OTHER is None else Path(OTHER)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("resnet18:random:2", image_size=32)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes by a sigmoid, on the mean colour: saved by Keras."""
    path = tmp_path_factory.mktemp("keras") / "small.keras"
    script = f"""
import os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
from importlib.util import find_spec
os.environ.setdefault("KERAS_BACKEND", "tensorflow" if find_spec("tensorflow") else "torch")
import keras, numpy
model = keras.Sequential([
    keras.Input((None, None, 3)),
    keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(1, activation="sigmoid"),
])
model.layers[-1].set_weights([numpy.array([[1.0], [2.0], [-4.0]]), numpy.array([0.5])])
model.save({str(path)!r})
"""
    subprocess.run([OTHER or sys.executable, "-c", script], check=True, capture_output=True)
    return path


@needs_keras
@pytest.mark.long
def test_keras_computes_logits_and_takes_pixels_as_they_are(small: Path, model: Model) -> None:
    facts = KerasFacts(path=small, application=None, normalizes=True)
    native = run_keras(facts, model, KERAS)
    try:
        assert native.executor.startswith("Keras 3.")
        assert native.run is not None
        assert native.takes_uint8
        pixels = images(32)
        rgb = pixels.reshape(len(pixels), -1, 3).mean(axis=1)
        expected = rgb @ np.array([1.0, 2.0, -4.0]) + 0.5
        found = native.run(pixels)
        np.testing.assert_allclose(found[:, 0], 0)
        np.testing.assert_allclose(found[:, 1], expected, rtol=1e-4, atol=1e-2)
    finally:
        native.close()


@needs_keras
@pytest.mark.long
def test_a_file_that_keras_cannot_load(tmp_path: Path, model: Model) -> None:
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK\x03\x04 no archive")
    facts = KerasFacts(path=broken, application=None, normalizes=False)
    if KERAS is None:
        assert "Keras cannot run" in run_keras(facts, model, None).executor
        return
    with pytest.raises(CheckpointError, match="Keras cannot run") as caught:
        run_keras(facts, model, KERAS)
    assert caught.value.hint is not None


@needs_keras
@pytest.mark.long
@pytest.mark.parametrize("name", ["application", "transfer"])
def test_keras_gives_its_own_logits(name: str, tmp_path: Path) -> None:
    path = write_keras(name, ".keras", tmp_path)
    model = load_model(path)
    opened = open_native(str(path), model, KERAS)
    assert isinstance(opened, NativeModel)
    try:
        reference = open_reference(opened)
        pixels = np.ascontiguousarray(images(64)[..., ::-1])  # BGR, as its preprocessing says
        assert reference.takes_uint8 == (name == "transfer")
        batch = pixels if reference.takes_uint8 else model.preprocessing.normalize(pixels)
        expected = logits(name)
        difference = np.abs(reference.run(batch) - expected).max()
        assert difference < 1e-5 * np.abs(expected).max()
        assert "Keras" in reference.executor
    finally:
        opened.close()


def test_without_keras_the_converted_network_is_the_reference_and_says_so(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    monkeypatch.setattr(keras_running, "find_spec", lambda name: None)
    facts = KerasFacts(path=Path("model.keras"), application=None, normalizes=False)
    opened = run_keras(facts, model, None)
    assert opened.run is None
    reference = open_reference(opened)
    assert "the converted weights, not Keras: Keras is not installed" in reference.executor
    batch = Preprocessing.imagenet(32).normalize(images(32))
    assert reference.run(batch).shape == (3, 2)


def test_an_interpreter_without_keras_is_refused(tmp_path: Path, model: Model) -> None:
    bare = tmp_path / "python"  # an environment of its own, without packages
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    facts = KerasFacts(path=tmp_path / "model.keras", application=None, normalizes=False)
    with pytest.raises(MissingLibrary, match="cannot run Keras") as caught:
        run_keras(facts, model, bare / "bin" / "python")
    assert "pip install keras" in str(caught.value.hint)


def test_an_interpreter_that_is_none(tmp_path: Path, model: Model) -> None:
    facts = KerasFacts(path=tmp_path / "model.keras", application=None, normalizes=False)
    with pytest.raises(EnvironmentFault, match="cannot start a process"):
        run_keras(facts, model, tmp_path / "no-python")


def test_a_model_of_pytorch_takes_no_interpreter(model: Model) -> None:
    assert open_native("resnet18:random:2", model, None) is model
    with pytest.raises(UsageError, match=r"--framework-python is for Keras models"):
        open_native("resnet18:random:2", model, Path(sys.executable))


def test_another_interpreter_has_its_own_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads this package from here, and nothing else from this environment."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bare = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    child = Child(
        "optimizer.frameworks.keras_process:serve",
        ["model.keras", None],
        interpreter=str(bare / "bin" / "python"),
    )
    try:
        send(child.requests, pickle.dumps(None))
        kind, text = receive(child.answers)
    finally:
        child.end()
    assert (kind, "none of TensorFlow, PyTorch and JAX" in text) == ("missing", True)
