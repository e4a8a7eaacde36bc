"""Fixtures that several rooms share."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

import optimizer.training

# A shell that starts tests in the background has them ignore Ctrl-C, and so would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure of the property under test.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def digits_checkpoint(request: pytest.FixtureRequest) -> Path:
    """A ResNet-50 trained on the digits at 32 px (one to three minutes on two cores).

    It stays in pytest's own cache between sessions, under a digest of the training code, so that
    a session that changed nothing of it does not train again. Use it in slow tests only.
    """
    from optimizer.options import TrainOptions
    from optimizer.training import open_training_data, train_checkpoint

    code = b"".join(
        path.read_bytes() for path in sorted(Path(optimizer.training.__file__).parent.glob("*.py"))
    )
    assert request.config.cache is not None
    folder = request.config.cache.mkdir(f"digits-{hashlib.sha256(code).hexdigest()[:12]}")
    train, held_out = open_training_data("digits")
    path = folder / "resnet50.safetensors"
    with FileLock(folder / "lock"):  # parallel sessions train once
        return train_checkpoint(TrainOptions(), train, path, held_out=held_out).path


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded ResNet-18 with ten classes at 32 px: for structure, not for accuracy."""
    from dataclasses import replace

    from optimizer.data import Preprocessing
    from optimizer.models import load_model, save_checkpoint

    model = load_model("resnet18:random:10")
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    classes = tuple(str(digit) for digit in range(10))
    small = replace(model, preprocessing=Preprocessing.digits(32), classes=classes)
    return save_checkpoint(small, path, details={}).path


@pytest.fixture(scope="session")
def small_graph(small_checkpoint: Path) -> Path:
    """The FP32 graph of `small_checkpoint`."""
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    return export_onnx(
        load_model(str(small_checkpoint)), small_checkpoint.with_name("small.onnx")
    ).path


@pytest.fixture(scope="session")
def small_statistics(small_graph: Path) -> Path:
    """Calibration statistics of `small_graph` on 64 real digits."""
    from optimizer.data import open_dataset
    from optimizer.precision import calibrate

    digits = open_dataset("digits:train", limit=64)
    return calibrate(small_graph, digits, small_graph.with_name("small.stats.npz")).path
