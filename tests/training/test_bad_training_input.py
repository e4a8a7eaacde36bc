"""What a training does with data, options and machines that are not as they should be."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import optimizer
from optimizer.data import ImageDataset, open_dataset
from optimizer.data.pixels import TensorSource
from optimizer.errors import ArtifactError, DataError, ResnetOptError, UsageError
from optimizer.models import load_model
from optimizer.options import TrainOptions
from optimizer.progress import Silent
from optimizer.training import train, train_checkpoint, training_folder
from optimizer.training.distribution import World
from optimizer.training.training_state import StateFile

SMALL: dict[str, Any] = {"arch": "resnet18", "image_size": 8, "epochs": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def few() -> ImageDataset:
    return open_dataset("digits:train", limit=16)


def folder_of(root: Path, classes: dict[str, int]) -> Path:
    """Images of all sizes, by class."""
    random = np.random.RandomState(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            height, width = random.randint(5, 40, 2)
            pixels = random.randint(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_images_of_different_sizes_are_trained_on(tmp_path: Path) -> None:
    data = open_dataset(str(folder_of(tmp_path / "data", {"a": 9, "b": 9})))
    assert len(train(data, TrainOptions(**SMALL, workers=0)).losses) == 1


def test_one_class_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has only one class, a"):
        train(open_dataset(str(folder_of(tmp_path / "data", {"a": 9}))), TrainOptions(**SMALL))


def test_no_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="data"):
        optimizer.train(tmp_path / "m.safetensors", data=str(tmp_path / "data"))


@pytest.mark.parametrize("labels", [[0, 1, 2, 9], [0, 1, -1, 1]])
def test_labels_beyond_the_classes_are_refused(tmp_path: Path, labels: list[int]) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    with pytest.raises(DataError, match="label"):
        optimizer.train(tmp_path / "m.safetensors", data=str(tmp_path / "d.npz"))


def test_missing_labels_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="label"):
        optimizer.train(tmp_path / "m.safetensors", data=str(tmp_path / "d.npz"))


def test_a_last_batch_of_one_is_left_out(few: ImageDataset) -> None:
    """BatchNorm at 1 x 1 pixel needs two images."""
    data = few.select(np.arange(9))
    trained = train(data, TrainOptions(**SMALL), held_out=data)  # 9 held-out images count
    assert trained.history[-1]["step"] == 1
    with pytest.raises(UsageError, match="too few for 2 batches per step"):
        train(few.select(np.arange(3)), TrainOptions(**SMALL, accumulate=2))


def test_images_that_are_in_both_sets_are_counted(few: ImageDataset) -> None:
    trained = train(few, TrainOptions(**SMALL), held_out=few.select(np.arange(5)))
    assert "5 of 5 images of digits:train are also in digits:train" in trained.notes[0]


def test_a_loss_that_is_not_finite_names_what_is_needed(
    few: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step, the rate, the images, and the last good checkpoint."""
    path = tmp_path / "m.safetensors"
    rates = {"scheduler": "step", "lr": 1e-3, "lr_step": 1, "lr_decay_rate": 0.5}
    options = TrainOptions.parse({**SMALL, **rates, "epochs": 4})

    class Poisons(Silent):
        """After the first epoch of two steps, an image has values that no image has."""

        steps = 0

        def advance(self, steps: int = 1, *, note: str | None = None) -> None:
            self.steps += steps
            if self.steps == 2:
                images[:] = np.inf

    images = np.zeros((16, 3, 8, 8), np.float32)
    data = replace(few, source=TensorSource(images, "few"), positions=np.arange(16))
    monkeypatch.setattr("optimizer.training.training_images._MAX_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(TensorSource, "check", lambda self, position: None)
    with pytest.raises(UsageError) as caught:
        train_checkpoint(options, data, path, progress=Poisons())
    message = str(caught.value)
    for part in ("epoch 2, step 3", "at learning rate 0.0005", "few/0", "--lr 0.0001"):
        assert part in message, message
    assert f"last good checkpoint: {training_folder(path) / 'last.pt'}" in message
    assert not path.exists()


@contextmanager
def file_limit(number: int) -> Iterator[None]:
    """No file may become larger, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


class FullDisk(Silent):
    """From a step on, no file can be written."""

    def __init__(self, at: int, until: int) -> None:
        self._at, self._until, self.steps = at, until, 0
        self._limit: Any = None

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        self.steps += steps
        if self.steps == self._at:
            self._limit = file_limit(10)
            self._limit.__enter__()
        if self.steps == self._until:
            self._limit.__exit__(None, None, None)


def test_a_full_disk_does_not_end_a_training(few: ImageDataset, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    options = TrainOptions.parse({**SMALL, "epochs": 3})
    artifact = train_checkpoint(options, few, path, held_out=few, progress=FullDisk(1, 5))
    notes = "\n".join(artifact.manifest.details["notes"])
    assert "last.pt could not be written: the disk is full" in notes
    assert "the history could not be written" in notes
    assert len(artifact.manifest.details["history"]) == 3
    whole = train_checkpoint(options, few, tmp_path / "whole.safetensors", held_out=few)
    assert load_model(path).sha256 == load_model(whole.path).sha256


def test_a_truncated_checkpoint_is_replaced_by_the_one_before_and_said(
    few: ImageDataset, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    options = {**SMALL, "epochs": 4}

    class Stops(Silent):
        steps = 0

        def advance(self, steps: int = 1, *, note: str | None = None) -> None:
            self.steps += steps
            if self.steps == 5:
                raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        train_checkpoint(TrainOptions.parse(options), few, path, progress=Stops())
    file = StateFile(training_folder(path))
    assert [torch.load(p, weights_only=True)["step"] for p in (file.previous, file.path)] == [2, 4]
    file.path.write_bytes(file.path.read_bytes()[:1000])
    artifact = train_checkpoint(TrainOptions.parse({**options, "resume": True}), few, path)
    notes = "\n".join(artifact.manifest.details["notes"])
    assert "last.pt is damaged; the checkpoint before it is used" in notes
    assert "continued at step 2" in notes


def test_a_checkpoint_of_another_kind_of_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_text("hello")
    with pytest.raises(ArtifactError, match=r"no checkpoint in .* can be read"):
        StateFile(tmp_path).load()


def test_errors_of_the_exchange_are_told_from_others() -> None:
    world = World(1, 2)
    gone = (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"
    )
    with pytest.raises(ResnetOptError, match="process 1 of 2 lost the others"), world.others():
        raise RuntimeError(gone)
    with pytest.raises(RuntimeError, match="shape"), world.others():
        raise RuntimeError("shape '[2]' is invalid")
    with pytest.raises(RuntimeError, match="peer"), World().others():
        raise RuntimeError(gone)


@pytest.mark.long
def test_one_process_that_is_killed_ends_all(tmp_path: Path) -> None:
    """All end, the exit code is not 0, and it is said which one and what continues."""
    output = tmp_path / "m.safetensors"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "optimizer", "train", "--arch", "resnet10t", "--image-size", "8", "--epochs", "500",
        "--batch-size", "64", "--no-cache", "-o", str(output),
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as launcher:
        while not (tmp_path / "m.training" / "last.pt").exists():
            assert launcher.poll() is None
            time.sleep(0.05)
        children = psutil.Process(launcher.pid).children(recursive=True)
        (second,) = [child for child in children if child.environ().get("RANK") == "1"]
        second.kill()
        _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "rank      : 1" in errors
    assert "SIGKILL" in errors
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
    assert not output.exists()
