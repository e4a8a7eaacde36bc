"""TensorFlow's SavedModels: what needs no TensorFlow, and the whole way where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import optimizer
from optimizer.engines.onnxruntime import as_written
from optimizer.errors import GraphError, MissingLibrary, UsageError
from optimizer.exporting.saved_model import is_saved_model
from optimizer.frameworks.tensorflow_process import FORBIDDEN, convert

PYTHON = os.environ.get("RESNET_OPT_TF_PYTHON")
NO_TENSORFLOW = "RESNET_OPT_TF_PYTHON does not name an interpreter with TensorFlow and tf2onnx"


def has_tensorflow() -> bool:
    if PYTHON is None:
        return False
    search = (
        "import importlib.util as u; assert u.find_spec('tensorflow') and u.find_spec('tf2onnx')"
    )
    return subprocess.run([PYTHON, "-c", search], check=False, capture_output=True).returncode == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a SavedModel."""
    made = tmp_path / "classifier"
    made.mkdir()
    (made / "saved_model.pb").write_bytes(b"\x08\x01")
    return made


def test_a_saved_model_is_known_by_its_file(folder: Path, tmp_path: Path) -> None:
    assert is_saved_model(folder)
    assert not is_saved_model(tmp_path)


def test_without_tensorflow_the_way_to_it_is_named(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with pytest.raises(MissingLibrary, match="No module named 'tensorflow'") as caught:
        optimizer.export(folder, tmp_path / "m.onnx", framework_python=bare / "bin" / "python")
    assert "--framework-python" in str(caught.value.hint)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("given", [{"arch": "resnet50"}, {"batch": "4"}, {"image_size": 64}])
def test_options_of_checkpoints_are_refused(given: dict, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a SavedModel"):
        optimizer.export(folder, tmp_path / "m.onnx", **given)


@pytest.mark.parametrize("given", [{"mean": 0.5}, {"framework_python": sys.executable}])
def test_options_of_saved_models_are_refused_elsewhere(given: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a SavedModel"):
        optimizer.export("resnet18:random", tmp_path / "m.onnx", **given)


def test_operations_that_reach_outside_are_listed() -> None:
    assert {"ReadFile", "WriteFile", "PyFunc", "EagerPyFunc"} <= FORBIDDEN
    assert convert.__module__ == "optimizer.frameworks.tensorflow_process"


SCRIPT = """
import os, sys
os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
sys.path.insert(0, sys.argv[1])
import numpy as np, tensorflow as tf
from keras_record import narrow
from keras_values import images
folder = sys.argv[2]
model = narrow("v1")
pixels = images(32).astype(np.float32) / 127.5 - 1
np.save(f"{folder}/logits.npy", np.asarray(model(pixels, training=False)))
model.export(f"{folder}/classifier", verbose=False)

class Reads(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 32, 32, 3], tf.float32)])
    def __call__(self, x):
        length = tf.strings.length(tf.io.read_file("/etc/hostname"))
        return tf.reduce_mean(x, [1, 2]) + tf.cast(length, tf.float32)

module = Reads()
tf.saved_model.save(module, f"{folder}/reads", signatures=module.__call__.get_concrete_function())

with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    x = tf.compat.v1.placeholder(tf.float32, [None, 32, 32, 3])
    y = tf.reduce_mean(x, [1, 2])
    tf.compat.v1.saved_model.simple_save(session, f"{folder}/tf1", {"x": x}, {"y": y})
"""


@pytest.mark.long
@pytest.mark.skipif(not has_tensorflow(), reason=NO_TENSORFLOW)
def test_saved_models_with_tensorflow(tmp_path: Path) -> None:
    """One made by Keras is taken; one that reads a file and one of TensorFlow 1 are refused."""
    benchmarks = str(Path(optimizer.__file__).parents[1] / "benchmarks")
    assert PYTHON is not None
    subprocess.run([PYTHON, "-c", SCRIPT, benchmarks, str(tmp_path)], check=True, timeout=600)
    options = {"framework_python": PYTHON, "mean": 0.5, "std": 0.5, "resize": 32, "crop": 32}
    result = optimizer.export(tmp_path / "classifier", tmp_path / "model.onnx", **options)
    assert result.compared_with == "TensorFlow"
    assert result.max_relative_difference is not None
    assert result.max_relative_difference < 1e-5
    assert result.manifest.preprocessing is not None
    from keras_values import images

    batch = (images(32).astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    expected = np.load(tmp_path / "logits.npy")
    found = as_written(result.path).run(np.ascontiguousarray(batch))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()

    for name, words in (("reads", "operation ReadFile"), ("tf1", "TensorFlow 1 wrote it")):
        with pytest.raises(GraphError, match=words) as caught:
            optimizer.export(tmp_path / name, tmp_path / f"{name}.onnx", **options)
        assert f"--saved-model {tmp_path / name}" in str(caught.value.hint)
        assert not (tmp_path / f"{name}.onnx").exists()
