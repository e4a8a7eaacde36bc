from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optimizer
from optimizer.cli.app import parse_command_line
from optimizer.cli.spellings import translated
from optimizer.options import TrainOptions

COMMAND = """
--model_path resnet50.pth --num_epochs 10 --train_data_path train --test_data_path test
--device gpu --CUDA_VERSION 9.0 --cudnn_version 7.1 --python_version 3.7 --batch_size 32
--lr 0.001 --lr_decay_rate 0.1 --weight_decay 0.0005 --hidden_size 128 --num_layers 5
--num_features 3
"""


def test_the_flags_of_a_training_script_are_understood() -> None:
    name, options = parse_command_line(["train", *COMMAND.split()])
    assert name == "train"
    assert options == TrainOptions.parse(
        {
            "data": "train", "val": "test", "epochs": 10, "batch_size": 32, "lr": 0.001,
            "lr_decay_rate": 0.1, "weight_decay": 0.0005, "hidden_size": 128, "hidden_layers": 5,
            "channels": 3, "device": "cuda", "min_cuda": "9.0", "min_cudnn": "7.1",
            "min_python": "3.7",
        }
    )  # fmt: skip


def test_values_and_other_commands_are_unchanged() -> None:
    assert translated(["-v", "train", "--num_epochs=3"]) == ["-v", "train", "--epochs=3"]
    assert translated(["export", "--num_epochs", "3"]) == ["export", "--num_epochs", "3"]


def test_the_script_is_the_command() -> None:
    script = Path(optimizer.__file__).parent.parent / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "--model_path", "x.onnx"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "weights are written as .safetensors, .pth, .pt, not as x.onnx" in done.stderr
