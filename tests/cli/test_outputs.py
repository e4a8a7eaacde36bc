"""Output paths: checked before the work starts, and never one of the inputs."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from .conftest import Command


@pytest.mark.parametrize("verb", ["build", "quantize", "calibrate", "export"])
def test_no_verb_overwrites_its_input(
    resnet_opt: Command, verb: str, small_graph: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    own = tmp_path / ("own.safetensors" if verb == "export" else "own.onnx")
    shutil.copyfile(small_checkpoint if verb == "export" else small_graph, own)
    before = own.read_bytes()
    more = ["--calib", "digits:train"] if verb in {"quantize", "calibrate"} else []
    completed = resnet_opt(verb, own, *more, "-o", own)
    assert completed.code == 2, completed
    assert "the output would overwrite the input" in completed.err
    assert own.read_bytes() == before


def test_the_output_is_checked_before_measuring(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    for output, code in ((tmp_path, 2), (Path("/proc/b.json"), 3)):
        completed = resnet_opt("bench", small_checkpoint, "--duration", "100ms", "-o", output)
        assert completed.code == code, completed
        assert "warm up" not in completed.err, "checked before anything is measured"
    completed = resnet_opt("bench", small_checkpoint, "-o", small_checkpoint)
    assert completed.code == 2
    assert small_checkpoint.stat().st_size > 1 << 20


def test_a_full_disk_is_not_reported_as_a_bug(
    resnet_opt: Command, monkeypatch: pytest.MonkeyPatch, small_checkpoint: Path, tmp_path: Path
) -> None:

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "m.onnx")

    monkeypatch.setattr("optimizer.verbs.export.export", full)
    completed = resnet_opt("export", small_checkpoint, "-o", tmp_path / "m.onnx")
    assert completed.code == 3
    assert "No space left on device: m.onnx" in completed.err
    assert "internal error" not in completed.err


def test_no_cache_rebuilds_an_existing_file(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m.onnx"
    assert resnet_opt("export", small_checkpoint, "-o", output).code == 0
    assert "already up to date" in resnet_opt("export", small_checkpoint, "-o", output).out
    assert (
        "already up to date"
        not in resnet_opt("export", small_checkpoint, "-o", output, "--no-cache").out
    )


def test_precision_names_are_checked(
    resnet_opt: Command, small_graph: Path, tmp_path: Path
) -> None:
    completed = resnet_opt("build", small_graph, "--precision", "int4", "-o", tmp_path / "m.blob")
    assert completed.code == 2
    assert "precision: 'int4' is not a choice" in completed.err
    completed = resnet_opt(
        "build",
        small_graph,
        "--precision",
        "FP32",
        "--engine",
        "openvino",
        "-o",
        tmp_path / "m.blob",
    )
    assert completed.code == 0, completed.err


@pytest.mark.long
def test_a_graph_with_a_fixed_batch_is_calibrated_and_built(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Fixed batches are common in ONNX files; 50 images are not a multiple of the batch of 4."""
    graph, engine = tmp_path / "b4.onnx", tmp_path / "b4.blob"
    assert resnet_opt("export", small_checkpoint, "--batch", 4, "-o", graph).code == 0
    completed = resnet_opt(
        "build", graph, "--precision", "int8", "--engine", "openvino", "--calib", "digits:train",
        "--calib-images", 50, "-o", engine,
    )  # fmt: skip
    assert completed.code == 0, completed.err
    completed = resnet_opt(
        "validate", engine, "--reference", small_checkpoint, "--data", "digits:test", "--limit", 50,
        "--max-drop", "10pp", "-o", tmp_path / "v.json",
    )  # fmt: skip
    assert completed.code in {0, 6}, completed


def test_the_log_is_appended_to_a_log_only(
    resnet_opt: Command, small_graph: Path, tmp_path: Path
) -> None:
    log, other = tmp_path / "run.log", tmp_path / "own.onnx"
    for number in range(3):
        assert resnet_opt("inspect", small_graph, "--log-file", log).code == 0
        logging.getLogger("optimizer.room").debug("line %d", number)
    assert [line[-6:] for line in log.read_text().splitlines()] == ["line 0", "line 1", "line 2"]
    shutil.copyfile(small_graph, other)
    before = other.read_bytes()
    (tmp_path / "null").symlink_to("/dev/null")
    for path, wrong in ((other, "is no log of resnet-opt"), (tmp_path / "null", "is a device")):
        completed = resnet_opt("inspect", small_graph, "--log-file", path)
        assert completed.code == 2, completed
        assert wrong in completed.err
        assert "--log-file with a new name" in completed.err
    assert other.read_bytes() == before


def test_a_timing_cache_and_a_recipe_replace_nothing_else(
    resnet_opt: Command, small_graph: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo.cache")
    shutil.copyfile(small_graph, tmp_path / "own.onnx")
    shutil.copyfile(f"{small_graph}.json", tmp_path / "own.onnx.json")
    build = ("build", small_graph, "--engine", "tensorrt-rtx", "--target", "sm89", "-o")
    for name, wrong in (("fifo.cache", "is a FIFO"), ("own.onnx", "is no timing cache")):
        completed = resnet_opt(*build, tmp_path / "e.rtx", "--timing-cache", tmp_path / name)
        assert completed.code == 2, completed
        assert wrong in completed.err
        assert "--timing-cache with a new name" in completed.err
    (tmp_path / "kernels.bin").write_bytes(b"somebody's")
    completed = resnet_opt(*build, tmp_path / "e.rtx", "--runtime-cache", "kernels.bin")
    assert completed.code == 2, completed
    assert "kernels.bin exists and was not written by resnet-opt" in completed.err
    assert "--runtime-cache with another name" in completed.err
    recipe = ("run", small_checkpoint, "--data", "digits:test", "--save-recipe")
    completed = resnet_opt(*recipe, tmp_path / "kernels.bin")
    assert completed.code == 2
    assert "--save-recipe with another name" in completed.err
    assert (tmp_path / "kernels.bin").read_bytes() == b"somebody's"


def test_a_training_leaves_the_files_of_others(resnet_opt: Command, tmp_path: Path) -> None:
    folder = tmp_path / "m.training"
    folder.mkdir()
    (folder / "best.pth").write_bytes(b"somebody's")
    train = ("train", "--arch", "resnet18", "--data", "digits:train", "-o")
    completed = resnet_opt(*train, tmp_path / "m.safetensors")
    assert completed.code == 2, completed
    assert "best.pth exists and was not written by resnet-opt train" in completed.err
    (tmp_path / "n.training").write_text("a file")
    completed = resnet_opt(*train, tmp_path / "n.safetensors")
    assert completed.code == 2
    assert "n.training is a file" in completed.err
    assert (folder / "best.pth").read_bytes() == b"somebody's"
