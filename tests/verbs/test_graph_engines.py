"""`predict` and `bench` on ONNX graphs, also of other exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import optimizer
from optimizer.engines.onnxruntime import as_written
from optimizer.errors import GraphError, UsageError
from optimizer.results import Prediction
from tests.graphs.dresses import SIZE, Dress, model_of, write

STATED = {"mean": 0.5, "std": 0.25, "resize": SIZE, "crop": SIZE}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in MXNet's dress, with nothing stated."""
    dress = Dress(opset=8, ir_version=3, batchnorm="kept", constants="inputs")
    return write(tmp_path_factory.mktemp("foreign") / "model.onnx", dress)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_predict_imports_a_foreign_graph(foreign: Path, image: Path) -> None:
    (found,) = optimizer.predict(foreign, image, **STATED)
    assert isinstance(found, Prediction)
    pixels = np.asarray(Image.open(image), np.float32).transpose(2, 0, 1)[None] / 255
    scores = as_written(model_of(Dress()).SerializeToString()).run(
        (pixels - 0.5) / np.float32(0.25)
    )
    expected = np.exp(scores[0] - scores[0].max())
    expected /= expected.sum()
    assert found.indices == np.argsort(-expected).tolist()
    np.testing.assert_allclose(found.probabilities, sorted(expected, reverse=True), rtol=1e-4)


def test_predict_needs_the_preprocessing(foreign: Path, image: Path) -> None:
    with pytest.raises(GraphError, match="does not state its preprocessing") as caught:
        optimizer.predict(foreign, image)
    assert "--mean" in str(caught.value.hint)


def test_bench_measures_a_foreign_graph(foreign: Path, tmp_path: Path) -> None:
    result = optimizer.bench(foreign, duration="0.2s", crop=SIZE)
    assert [(e.name, e.backend, e.precision) for e in result.engines] == [
        ("model.ort.onnx", "onnxruntime", "fp32")
    ]
    assert not list(foreign.parent.glob("*.float.onnx")), "nothing is written beside the file"


def test_what_a_graph_states_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--mean: there is no ONNX graph to import"):
        optimizer.bench("model.safetensors", mean=0.5)
