"""The record of a GPU without TensorRT: every step that a CPU can do, and what happens to those that fail."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_stack
import pytest
from cuda_stack import Place

from tests.engines.tensorrt.hostgpu import HostCuda


@pytest.fixture(scope="module")
def place(
    small_checkpoint: Path,
    small_graph: Path,
    small_quantized: Callable[[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    """What `cuda_stack.prepare` makes, of a small network."""
    made = Place(tmp_path_factory.mktemp("stack"), "cpu")
    shutil.copyfile(small_checkpoint, made.checkpoint)
    shutil.copyfile(small_graph, made.graph("fp32"))
    shutil.copyfile(small_quantized("fp16", "tensorrt"), made.graph("fp16"))
    return made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_stack, "_CALLS", 2)
    monkeypatch.setattr(cuda_stack, "_WARM_UP", 1)


class Pageable(HostCuda):
    """Also copies from memory that is not page-locked, as CUDA does."""

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        if source in self.memory:
            super().to_device(target, source, size, stream)
        else:
            self.put(stream, lambda: ctypes.memmove(target, source, size), 0.0)


@pytest.mark.usefixtures("quick")
def test_copies_from_both_kinds_of_memory() -> None:
    api = Pageable()
    rows = cuda_stack.copies(api, 0)
    assert [(row["memory"], row["bytes"]) for row in rows] == [
        (memory, images * 3 * 224 * 224 * 4)
        for images in cuda_stack.BATCHES
        for memory in ("page-locked", "ordinary")
    ]
    assert api.held == 0


@pytest.mark.usefixtures("quick")
def test_providers(place: Place) -> None:
    engines = cuda_stack.onnxruntime_step(place)["engines"]
    assert [(row["precision"], row["cuda_graph"]) for row in engines] == [
        ("fp32", False), ("fp32", True), ("fp16", False), ("fp16", True),
    ]  # fmt: skip
    first, *others = engines
    assert first["convolutions"] > 0
    assert first["relative_error"] < 1e-4
    assert [span["batch"] for span in first["spans"]] == list(cuda_stack.BATCHES)
    assert all("FP32 only" in row["error"] for row in others)


@pytest.mark.usefixtures("quick")
def test_settings_of_pytorch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    monkeypatch.setattr(cuda_stack, "BATCHES", (1,))
    rows = cuda_stack.torch_step(place)["settings"]
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
    torch.backends.cuda.matmul.allow_tf32 = False
    assert len({(row["layout"], row["tf32"], row["benchmark"]) for row in rows}) == 8
    assert all(row["ms"] > 0 for row in rows)


def test_a_step_that_fails_is_recorded_and_the_next_one_runs(place: Place) -> None:
    """Here `cuda` fails for lack of a driver, in its own process."""
    if cuda_stack.cuda_status().devices:
        pytest.skip("there is a GPU")
    written: list[str] = []
    results = cuda_stack.collect(
        place, 120.0, lambda so_far: written.append(json.dumps(so_far)), ["cuda"]
    )
    assert results["steps"]["cuda"]["status"] in {"ok", "failed"}
    text = cuda_stack.markdown(json.loads(written[-1]))
    assert "## Steps" in text
    late = cuda_stack.collect(place, 0.0, lambda _: None, ["torch", "bench"])
    assert {step["status"] for step in late["steps"].values()} == {"skipped"}


def test_a_step_that_takes_too_long(place: Place) -> None:
    step = cuda_stack._run_step("torch", place, 0.2)
    assert (step["status"], step["error"]) == ("failed", "not done after 0 s")


def test_the_report_has_every_table() -> None:
    bench = {
        "engines": [
            {"name": "a | b", "batch": 1, "status": "ok", "images_per_s": 10.0, "latency_ms": {"p50": 1.0}}
        ]
    }  # fmt: skip
    steps: dict[str, Any] = {
        "cuda": {"status": "ok", "copies": [{"memory": "ordinary", "ms": 0.123456}]},
        "onnxruntime": {
            "status": "ok",
            "engines": [
                {
                    "precision": "fp16", "cuda_graph": True, "audit": {"verdict": "pass"}, "notes": [],
                    "spans": [{"batch": 1, "ms": 1.0, "ms_by_events": None}],
                }
            ],
        },
        "torch": {"status": "failed", "error": "exit code 1"},
        "bench": {"status": "ok", "bench": bench},
        "variants": {"status": "ok", "variants": {"torch-fp16": bench, "torch-compile": {"error": "no"}}},
    }  # fmt: skip
    results = {
        "device": {"name": "NVIDIA H200"},
        "libraries": {"torch": "2"},
        "created": "now",
        "steps": steps,
    }
    text = cuda_stack.markdown(results)
    for title in (
        "Copies to the GPU",
        "ONNX Runtime",
        "Side by side",
        "Against torch-compile",
        "Steps",
    ):
        assert f"## {title}" in text
    assert "## PyTorch" not in text
    assert "| ordinary | 0.1235 |" in text
    assert "| fp16 | yes | pass | 1 | – |" in text
    assert "a / b" in text


def test_a_folder_without_materials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cuda_stack.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        cuda_stack.main()
    assert "run it with --prepare first" in capsys.readouterr().err


@pytest.mark.long
def test_engines_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stack.prepare(tmp_path / "made", "resnet18:random:10", 32)
    place = Place(tmp_path / "made", "cpu")
    assert place.images(2).shape == (2, 3, 32, 32)
    monkeypatch.setattr(cuda_stack, "BENCH_SECONDS", 0.2)
    monkeypatch.setattr(cuda_stack, "BATCHES", (1,))
    monkeypatch.setattr(cuda_stack, "BASELINES", ("torch-fp16",))
    result = cuda_stack.bench_step(place)
    assert result["not_built"] == {}
    assert {engine["status"] for engine in result["bench"]["engines"]} == {"ok"}
    variants = cuda_stack.variants_step(place)["variants"]
    assert set(variants) == {"torch-fp16"}
    assert "engines" in variants["torch-fp16"], variants["torch-fp16"]
