"""The examples run as plain scripts: no guard, from standard input, in a notebook's kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TRAINED = {"model": 0, "monday": 0, "tuesday": 1}
pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints that the examples train, which they then find beside them."""
    folder = tmp_path_factory.mktemp("trained")
    for name, seed in TRAINED.items():
        optimizer.train(
            folder / f"{name}.safetensors",
            arch="resnet18",
            data="digits:train",
            epochs=3,
            seed=seed,
        )
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    for file in filter(Path.is_file, trained.iterdir()):
        shutil.copy(file, tmp_path)
    return tmp_path


def _environment(folder: Path) -> dict[str, str]:
    root = str(EXAMPLES.parent)
    return {**os.environ, "PYTHONPATH": root, "RESNET_OPT_CACHE": str(folder / "cache")}


def _run(arguments: list[str], folder: Path, script: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=_environment(folder),
        input=script,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("main_job.py", ["4 of 4 engines compute in the requested precision", "within the limit"]),
        ("int8_for_tensorrt.py", ["tensors with Q/DQ"]),
        ("mixed_precision.py", ["validation: pass", "audit: pass"]),
        ("compare_checkpoints.py", ["monday", "tuesday"]),
    ],
)
def test_a_script(folder: Path, name: str, words: list[str]) -> None:
    said = _run([str(EXAMPLES / name)], folder)
    for word in words:
        assert word in said, said


def test_from_standard_input(folder: Path) -> None:
    said = _run(["-"], folder, (EXAMPLES / "int8_for_tensorrt.py").read_text(encoding="utf-8"))
    assert "tensors with Q/DQ" in said


def test_in_a_test(folder: Path) -> None:
    said = _run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_accuracy.py")], folder
    )
    assert "1 passed" in said


def test_in_a_kernel(folder: Path) -> None:
    """A notebook runs cells inside an event loop, and shows the last value as HTML."""
    nbclient = pytest.importorskip("nbclient", reason="the extra dev installs nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    script = (EXAMPLES / "mixed_precision.py").read_text(encoding="utf-8")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(script), nbformat.v4.new_code_cell("engine")],
        metadata={"kernelspec": {"name": "python3", "display_name": "python3"}},
    )
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(folder)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _environment(folder).items():
            patch.setenv(name, value)
        client.execute()
    (shown,) = notebook.cells[1].outputs
    assert "<td>pass</td>" in shown["data"]["text/html"]
