"""The fixture as users call it: pytest in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimizer.data import Preprocessing, open_dataset
from optimizer.engines.onnxruntime import as_written
from tests.evaluation.graphs import PREPROCESSING, classifier

pytestmark = pytest.mark.slow

TESTS = """
def test_good(assert_accuracy):
    result = assert_accuracy("good.onnx", "data.npz", reference="reference.onnx", max_drop="2pp")
    assert result.hops[-1].flips == 0

def test_bad(assert_accuracy):
    assert_accuracy("bad.onnx", "data.npz", reference="reference.onnx", max_drop="0.5pp")

def test_few(assert_accuracy):
    assert_accuracy("good.onnx", "data.npz", reference="reference.onnx", max_drop="0.5pp", limit=50)

def test_flips(assert_accuracy):
    assert_accuracy(
        "bad.onnx", "data.npz", reference="reference.onnx", max_drop="100pp", max_flips="1%"
    )
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    reference = classifier(tmp_path / "reference.onnx")
    classifier(tmp_path / "good.onnx", precision="int8")
    classifier(tmp_path / "bad.onnx", seed=4, precision="int8")
    (pixels,) = open_dataset("digits:test").batches(
        540, Preprocessing(resize=None, crop=8), as_uint8=True
    )
    logits = as_written(reference).run(PREPROCESSING.normalize(pixels.images))
    np.savez(tmp_path / "data.npz", images=pixels.images, labels=logits.argmax(axis=1))
    (tmp_path / "test_engines.py").write_text(TESTS)
    return tmp_path


def test_the_fixture_passes_or_fails_with_the_finding(repository: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "optimizer.pytest_plugin", "test_engines.py"],
        cwd=repository,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "3 failed, 1 passed" in run.stdout
    assert (
        "exceeds the limit of 0.5 pp: the loss comes from quantization (graph int8)" in run.stdout
    )
    assert (
        "50 images cannot decide whether graph int8 stays within the limit of 0.5 pp" in run.stdout
    )
    assert "exceeds the limits of 100 pp and 1 % changed predictions" in run.stdout
    assert "Traceback" not in run.stdout


def test_the_plugin_imports_no_heavy_modules() -> None:
    code = (
        "import sys, optimizer.pytest_plugin;"
        "print([m for m in ('numpy', 'torch', 'onnx', 'scipy', 'pydantic') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
