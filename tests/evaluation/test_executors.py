"""Execution of graphs as written, in every precision."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from optimizer.engines.onnxruntime import as_written
from optimizer.evaluation.chain import Step
from optimizer.evaluation.executors import chunk_of, in_chunks, open_step
from optimizer.precision.half import to_half
from optimizer.targets.hardware import cpu_features
from tests.evaluation.graphs import classifier

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)


def _step(path: Path, precision: str) -> Step:
    return Step(name="g", parent="reference", kind="graph", path=path, precision=precision)


def _half(path: Path, kind: ir.DataType) -> Path:
    model = ir.load(classifier(path))
    to_half(model, kind)
    ir.save(model, path)
    return path


def test_fp32_agrees_with_pytorch(tmp_path: Path) -> None:
    path = classifier(tmp_path / "g.onnx")
    weights = {k: torch.from_numpy(v.const_value.numpy().copy())
               for k, v in ir.load(path).graph.initializers.items()}  # fmt: skip
    x = torch.relu(
        torch.nn.functional.conv2d(
            torch.from_numpy(IMAGES), weights["conv1.weight"], weights["conv1.bias"]
        )
    )
    expected = x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    executor = open_step(_step(path, "fp32"), 8)
    assert "optimizations off" in executor.name
    assert executor.run(IMAGES) == pytest.approx(expected.numpy(), abs=1e-5)


def test_fp16_arithmetic_is_stated_in_the_name(tmp_path: Path) -> None:
    executor = open_step(_step(_half(tmp_path / "g.onnx", ir.DataType.FLOAT16), "fp16"), 8)
    exact = as_written(classifier(tmp_path / "fp32.onnx")).run(IMAGES)
    outputs = executor.run(IMAGES)
    assert outputs.dtype == np.float32
    assert 0 < np.abs(outputs - exact).max() < 0.02
    assert executor.name.endswith("optimizations off, FP32 results rounded to FP16")
    assert (outputs == outputs.astype(np.float16).astype(np.float32)).all()


@pytest.mark.skipif(cpu_features().bf16, reason="this CPU computes BF16, OpenVINO runs the graph")
def test_bf16_is_emulated_on_a_cpu_without_it(tmp_path: Path) -> None:
    path = _half(tmp_path / "g.onnx", ir.DataType.BFLOAT16)
    executor = open_step(_step(path, "bf16"), 8)
    assert executor.name.endswith("FP32 results rounded to BF16")

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float()

    weights = {
        k: torch.from_numpy(v.const_value.numpy().astype(np.float32))
        for k, v in ir.load(path).graph.initializers.items()
    }
    x = torch.nn.functional.conv2d(
        rounded(torch.from_numpy(IMAGES)), weights["conv1.weight"], weights["conv1.bias"]
    )
    x = rounded(torch.relu(rounded(x)).mean((2, 3)))
    expected = rounded(x @ weights["fc.weight"].T + weights["fc.bias"]).numpy()
    outputs = executor.run(IMAGES)
    assert (outputs == outputs.astype(ml_dtypes.bfloat16).astype(np.float32)).all()
    # A different summation order may round to the neighbouring value, 2^-8 away.
    assert np.abs(outputs - expected).max() <= 2**-7 * np.abs(expected).max()
    plain = as_written(classifier(tmp_path / "fp32.onnx")).run(IMAGES)
    assert np.abs(outputs - expected).max() < np.abs(outputs - plain).max()


def test_chunks_hold_a_bounded_number_of_pixels() -> None:
    assert [chunk_of(size) for size in (32, 224, 288, 1024)] == [98, 2, 1, 1]


def test_chunks_give_the_same_result_as_the_whole_batch(tmp_path: Path) -> None:
    session = as_written(classifier(tmp_path / "g.onnx"))
    sizes: list[int] = []

    def run(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return session.run(batch)

    whole = run(IMAGES)
    assert in_chunks(run, IMAGES, 3) == pytest.approx(whole, abs=1e-6)
    assert in_chunks(run, IMAGES, None) == pytest.approx(whole, abs=0)
    assert sizes == [4, 3, 1, 4]
