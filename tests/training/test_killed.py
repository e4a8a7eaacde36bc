"""A training that is killed by SIGKILL loses at most what came after its last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimizer.models import load_model

ARGUMENTS = [
    "--arch", "resnet18", "--image-size", "8", "--epochs", "2", "--batch-size", "64",
    "--checkpoint-every", "0.01s", "--no-cache",
]  # fmt: skip


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "optimizer", "train", *ARGUMENTS, "-o", str(output), *more]


@pytest.mark.long
def test_a_killed_training_continues_to_the_same_weights(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    subprocess.run(command(whole), check=True, capture_output=True, env=env)
    state = tmp_path / "killed.training" / "last.pt"
    more: list[str] = []
    for _ in range(3):
        seen = state.stat().st_mtime_ns if state.exists() else 0
        with subprocess.Popen(
            command(killed, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
        ) as process:
            while not state.exists() or state.stat().st_mtime_ns == seen:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        more = ["--resume"]
        assert not killed.exists()
    done = subprocess.run(
        command(killed, "--resume"), check=True, capture_output=True, text=True, env=env
    )
    assert "continued at step" in done.stdout
    assert load_model(killed).sha256 == load_model(whole).sha256


@pytest.mark.long
def test_sigterm_names_the_command_that_continues(tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    with subprocess.Popen(
        command(output), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        while not (tmp_path / "model.training" / "last.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "asked to stop at step" in errors
    assert "hint: resnet-opt train" in errors
    assert "--resume" in errors
