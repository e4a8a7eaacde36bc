"""Where results go: refused before the work, and never onto what is read."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from optimizer.artifacts import check_output
from optimizer.errors import EnvironmentFault, UsageError

from .conftest import Command


def test_a_place_for_a_result(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "result.json", [tmp_path / "absent", "digits:train", None])
    assert not (tmp_path / "new").exists(), "looking leaves nothing"
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path)
    own = tmp_path / "own.onnx"
    own.write_bytes(b"x")
    link = tmp_path / "link.onnx"
    link.symlink_to(own)
    check_output(own, [tmp_path / "other.onnx"])
    with pytest.raises(UsageError, match=r"own\.onnx would be overwritten by itself"):
        check_output(link, [own])
    for place in (own / "below.json", Path("/proc/none/result.json")):
        with pytest.raises(EnvironmentFault, match="cannot be written") as caught:
            check_output(place)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("verb", ["build", "quantize", "calibrate", "export"])
def test_no_verb_writes_over_what_it_reads(
    resnet_opt: Command, verb: str, small_graph: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    own = tmp_path / ("own.safetensors" if verb == "export" else "own.onnx")
    shutil.copyfile(small_checkpoint if verb == "export" else small_graph, own)
    before = own.read_bytes()
    more = ["--calib", "digits:train"] if verb in {"quantize", "calibrate"} else []
    said = resnet_opt(verb, own, *more, "-o", own)
    assert said.code == 2, said
    assert "would be overwritten by itself" in said.err
    assert own.read_bytes() == before


def test_a_measurement_is_not_lost_to_its_place(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    for output, code in ((tmp_path, 2), (Path("/proc/b.json"), 3)):
        said = resnet_opt("bench", small_checkpoint, "--duration", "100ms", "-o", output)
        assert said.code == code, said
        assert "warm up" not in said.err, "told before anything is measured"
    said = resnet_opt("bench", small_checkpoint, "-o", small_checkpoint)
    assert said.code == 2
    assert small_checkpoint.stat().st_size > 1 << 20


def test_a_full_disk_is_no_bug(
    resnet_opt: Command, monkeypatch: pytest.MonkeyPatch, small_checkpoint: Path, tmp_path: Path
) -> None:

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "m.onnx")

    monkeypatch.setattr("optimizer.verbs.export.export", full)
    said = resnet_opt("export", small_checkpoint, "-o", tmp_path / "m.onnx")
    assert said.code == 3
    assert "No space left on device: m.onnx" in said.err
    assert "internal error" not in said.err


def test_no_cache_makes_anew_what_lies_there(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m.onnx"
    assert resnet_opt("export", small_checkpoint, "-o", output).code == 0
    assert "nothing to do" in resnet_opt("export", small_checkpoint, "-o", output).out
    assert (
        "nothing to do"
        not in resnet_opt("export", small_checkpoint, "-o", output, "--no-cache").out
    )


def test_precisions_are_known_by_name(
    resnet_opt: Command, small_graph: Path, tmp_path: Path
) -> None:
    said = resnet_opt("build", small_graph, "--precision", "int4", "-o", tmp_path / "m.blob")
    assert said.code == 2
    assert "precision: 'int4' is not a choice" in said.err
    said = resnet_opt(
        "build",
        small_graph,
        "--precision",
        "FP32",
        "--engine",
        "openvino",
        "-o",
        tmp_path / "m.blob",
    )
    assert said.code == 0, said.err


def test_a_graph_of_a_fixed_batch_is_calibrated_and_built(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Four at a time, 50 in all: the commonest ONNX file in the world has no dynamic axes."""
    graph, engine = tmp_path / "b4.onnx", tmp_path / "b4.blob"
    assert resnet_opt("export", small_checkpoint, "--batch", 4, "-o", graph).code == 0
    said = resnet_opt(
        "build", graph, "--precision", "int8", "--engine", "openvino", "--calib", "digits:train",
        "--calib-images", 50, "-o", engine,
    )  # fmt: skip
    assert said.code == 0, said.err
    said = resnet_opt(
        "validate", engine, "--reference", small_checkpoint, "--data", "digits:test", "--limit", 50,
        "--max-drop", "10pp", "-o", tmp_path / "v.json",
    )  # fmt: skip
    assert said.code in {0, 6}, said
