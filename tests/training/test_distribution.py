"""Several processes on one machine, over gloo, as torchrun starts them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optimizer.errors import UsageError
from optimizer.training import world_of_environment
from optimizer.training.distribution import World

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ONE_STEP = """
import sys
import torch
from optimizer.data import Preprocessing, open_dataset
from optimizer.models import build_module
from optimizer.options import TrainOptions
from optimizer.progress import Silent
from optimizer.training.classification_task import Classification
from optimizer.training.distribution import joined
from optimizer.training.labelled_reading import LabelledReading
from optimizer.training.loop import Fit, Work
from optimizer.training.training_images import TrainingImages
from optimizer.training.training_recipe import complete

output, batch_size, accumulate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
settings = complete(
    TrainOptions(image_size=16, epochs=1, batch_size=batch_size, accumulate=accumulate,
                 weight_decay=0),
    default="digits",
)
data, preprocessing = open_dataset("digits:train", limit=40), Preprocessing.digits(16)
cpu = torch.device("cpu")
with joined(cpu) as world:
    torch.manual_seed(0)
    module = build_module("resnet18", 10)
    for name, parameter in module.named_parameters():
        if "bn" in name or "downsample.1" in name:
            parameter.requires_grad = False
    work = Work(settings=settings, world=world, device=cpu, progress=Silent())
    task = Classification(settings, 10, preprocessing, None)
    reading = LabelledReading(data, preprocessing, settings)
    images = TrainingImages(data, preprocessing, settings, world, reading)
    fit = Fit(module, task, images, work)
    fit._train_mode()
    fit.run_step(next(fit._batches.stream(0, 1)))
    # The momentum after one step is the gradient.
    states = fit.state()["optimizer"]["state"]
    if world.first:
        torch.save([states[i]["momentum_buffer"] for i in sorted(states)], output)
"""


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.long
def test_the_gradient_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    script = tmp_path / "one_step.py"
    script.write_text(ONE_STEP)
    runs = {
        "one": [sys.executable, str(script), str(tmp_path / "one"), "16", "1"],
        "accumulated": [sys.executable, str(script), str(tmp_path / "accumulated"), "8", "2"],
        "two": [*TORCHRUN, str(script), str(tmp_path / "two"), "8", "1"],
        "both": [*TORCHRUN, str(script), str(tmp_path / "both"), "4", "2"],
    }
    gradients = {}
    for name, command in runs.items():
        done = run(command)
        assert done.returncode == 0, done.stderr
        parts = torch.load(tmp_path / name, weights_only=True)
        gradients[name] = torch.cat([part.flatten().double() for part in parts])
    one = gradients.pop("one")
    assert one.norm() > 0.1
    for name, other in gradients.items():
        assert float((other - one).norm() / one.norm()) < 1e-6, name


@pytest.mark.long
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    command = [
        *TORCHRUN, "-m", "optimizer", "train", "--arch", "resnet18", "--image-size", "8", "--epochs",
        "1", "--batch-size", "64", "--val", "digits:test", "--data", "digits:train", "-o", str(output),
        "--no-cache", "--json",
    ]  # fmt: skip
    done = run(command)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)  # only one of them prints
    with (tmp_path / "model.training" / "history.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert int(row["step"]) == 1257 // 128
    # Each of the 540 images counts once.
    assert manifest["details"]["top1"] * 540 == pytest.approx(
        round(manifest["details"]["top1"] * 540), abs=1e-6
    )


@pytest.mark.long
def test_a_process_that_fails_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, sys, torch\n"
        "from optimizer.training.distribution import joined\n"
        "from optimizer.errors import ResnetOptError\n"
        "with joined(torch.device('cpu')) as world:\n"
        "    world.sum([1.0])\n"
        "    if world.rank == 1:\n"
        "        os._exit(7)\n"
        "    try:\n"
        "        world.sum([1.0])\n"
        "    except ResnetOptError as error:\n"
        "        print(error, file=sys.stderr)\n"
        "        os._exit(5)\n"
    )
    done = run([*TORCHRUN, str(script)])
    assert done.returncode != 0
    assert "rank" in done.stderr
    assert "lost the others" in done.stderr or "exitcode  : 7" in done.stderr


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world_of_environment() == World()
    assert World().sum([1.5, 2]) == [1.5, 2]
    assert World().from_first("x") == "x"
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(UsageError, match="not a number"):
        world_of_environment()
