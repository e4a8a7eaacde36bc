"""A disk that fills while a verb writes: exit code 3, nothing at the output, nothing left behind.

A limit on the size of files makes the system refuse writes of any code, native libraries and child
processes included.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.torture.injecting import Outcome, in_a_copy


def with_limit(words: Sequence[object], limit: int, folder: Path) -> Outcome:
    """Run a command line in a copy of this process whose files may have ``limit`` bytes."""

    def run() -> int:
        from optimizer.cli.app import run_command_line

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return run_command_line([str(word) for word in words])

    return in_a_copy(run, folder)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("out", "tmp", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("RESNET_OPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path / "out"


def assert_nothing_is_left(out: Path) -> None:
    assert list(out.rglob("*")) == []
    assert list((out.parent / "tmp").glob("*resnet-opt*")) == []
    assert list((out.parent / "cache").glob("*/artifact")) == []
    assert list((out.parent / "cache").glob(".*")) == []


VERBS = {
    "quantize": "quantize {graph} --precision fp16 -o {out}/h.onnx",
    "calibrate": "calibrate {graph} --calib digits:train --calib-images 16 -o {out}/s.npz",
    "export": "export {checkpoint} -o {out}/m.onnx",
    "build-openvino": "build {graph} --engine openvino -o {out}/e.blob",
    "build-onnxruntime": "build {graph} --engine onnxruntime -o {out}/e.ort.onnx",
    "build-torch": "build {checkpoint} --engine torch -o {out}/e.safetensors",
    "validate": "validate {graph} --reference {checkpoint} --data digits:test --limit 20 "
    "-o {out}/v.json",
}
QUICK = {"quantize", "build-onnxruntime"}


@pytest.mark.slow
@pytest.mark.parametrize("verb", [pytest.param(v, marks=[] if v in QUICK else [pytest.mark.long])
                                  for v in VERBS])  # fmt: skip
@pytest.mark.parametrize("limit", [1000, 50_000])
def test_a_verb(
    verb: str, limit: int, out: Path, small_graph: Path, small_checkpoint: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if verb == "validate" and limit > 1000:
        pytest.skip("its files are smaller")
    line = VERBS[verb].format(graph=small_graph, checkpoint=small_checkpoint, out=out)
    outcome = with_limit(line.split(), limit, out)
    written = capfd.readouterr()
    assert outcome.status == 3, (written.err, outcome.error)
    assert "error: " in written.err
    assert "internal error" not in written.err
    assert_nothing_is_left(out)


def test_an_existing_file_is_kept(
    out: Path, small_graph: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = f"quantize {small_graph} --precision fp16 -o {out}/h.onnx"
    assert with_limit(line.split(), resource.RLIM_INFINITY, out).status == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 2
    line = f"quantize {small_graph} --precision bf16 -o {out}/h.onnx --no-cache"
    assert with_limit(line.split(), 50_000, out).status == 3
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert "File too large" in capfd.readouterr().err
