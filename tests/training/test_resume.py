"""A training that is interrupted after any step ends with the same weights."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.data import ImageDataset, open_dataset
from optimizer.errors import ArtifactError, UsageError
from optimizer.models import load_model
from optimizer.options import TrainOptions
from optimizer.progress import Silent
from optimizer.training import Stopped, train_checkpoint, training_folder
from optimizer.training.training_state import StateFile, changed_settings

SMALL: dict[str, Any] = {
    "arch": "resnet18", "image_size": 8, "epochs": 3, "batch_size": 16, "mixup": 0.2, "ema": 0.9,
    "val_every": 1,
}  # fmt: skip


class SendsSignals(Silent):
    """Calls what handles a signal after some steps; `test_killed` sends real ones.

    A real one would end all tests of this process if nothing watched for it.
    """

    def __init__(self, number: signal.Signals, at: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            pytest.skip("only the main thread receives signals")
        self._number, self._at, self.steps = number, at, 0

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        self.steps += steps
        if self.steps == self._at:
            handler = signal.getsignal(self._number)
            assert callable(handler), "nothing watches for the signal"
            handler(self._number, None)


@pytest.fixture(scope="module")
def few() -> ImageDataset:
    return open_dataset("digits:train", limit=70)


def interrupt_and_resume(folder: Path, at: int, number: signal.Signals) -> None:
    """Interrupt a training after some steps, continue it, and compare it with one that was not."""
    few = open_dataset("digits:train", limit=70)
    whole = folder / "whole.safetensors"
    train_checkpoint(TrainOptions(**SMALL), few, whole, held_out=few)
    path = folder / "model.safetensors"
    expected = Stopped if number is signal.SIGTERM else KeyboardInterrupt
    with pytest.raises(expected):
        train_checkpoint(
            TrainOptions(**SMALL), few, path, held_out=few, progress=SendsSignals(number, at)
        )
    assert not path.exists()
    assert StateFile(training_folder(path)).load()["step"] == at
    artifact = train_checkpoint(TrainOptions(**SMALL, resume=True), few, path, held_out=few)
    assert load_model(path).sha256 == load_model(whole).sha256
    assert f"continued at step {at}" in artifact.manifest.details["notes"]
    assert [row["epoch"] for row in artifact.manifest.details["history"]] == [1, 2, 3]
    assert not StateFile(training_folder(path)).exists


@pytest.mark.parametrize(
    ("at", "number"), [(6, signal.SIGTERM), pytest.param(8, signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_resumed_training_ends_with_the_same_weights(
    tmp_path: Path, at: int, number: signal.Signals
) -> None:
    """Step 6 is in the middle of an epoch of four steps, step 8 is the end of one.

    In a process of its own, because a signal is for the whole process.
    """
    code = (
        "import signal; from pathlib import Path; from tests.training import test_resume\n"
        f"test_resume.interrupt_and_resume(Path({str(tmp_path)!r}), {at}, signal.{number.name})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr


def test_other_settings_are_refused_by_name(few: ImageDataset, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(Stopped):
        train_checkpoint(TrainOptions(**SMALL), few, path, progress=SendsSignals(signal.SIGTERM, 1))
    with pytest.raises(UsageError, match=r"other settings: lr 0.03 -> 0.01"):
        train_checkpoint(TrainOptions(**SMALL, resume=True, lr=0.01), few, path)
    with pytest.raises(UsageError, match=r"batch_size 16 -> 8.*--elastic"):
        train_checkpoint(TrainOptions.parse({**SMALL, "batch_size": 8, "resume": True}), few, path)
    done = train_checkpoint(
        TrainOptions.parse({**SMALL, "batch_size": 8, "resume": True, "elastic": True}), few, path
    )
    assert "continued with batch_size 16 -> 8" in done.manifest.details["notes"]


def test_there_must_be_something_to_resume(few: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        train_checkpoint(TrainOptions(**SMALL, resume=True), few, tmp_path / "model.pth")


def test_a_truncated_checkpoint_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    for step in (1, 2):
        assert file.save({"step": step, "weights": torch.arange(1000)})
    assert file.load()["step"] == 2
    file.path.write_bytes(file.path.read_bytes()[:-100])
    assert file.load()["step"] == 1
    assert "damaged; the checkpoint before it is used" in file.notes[0]
    file.previous.write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"no checkpoint in .* can be read"):
        file.load()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    assert file.save({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        written = file.save({"step": 2, "weights": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not written
    assert "could not be written" in file.notes[0]
    assert file.load()["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".resnet-opt-training", "last.pt"]


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"format": 1, "step": Evil()}, tmp_path / "last.pt")
    with pytest.raises(ArtifactError):
        StateFile(tmp_path).load()
    assert not (tmp_path / "executed").exists()


def test_what_a_killed_training_left_is_deleted(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.save({"step": 1})
    for name in (".last.x1.pt", ".best.x2.pth"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "history.csv").touch()
    file.clean()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".resnet-opt-training", "history.csv", "last.pt"]


def test_equal_settings_have_no_changes() -> None:
    assert changed_settings({"lr": 1}, {"lr": 1}, elastic=False) == []
