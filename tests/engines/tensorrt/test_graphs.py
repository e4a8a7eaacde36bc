"""The networks that the other tests build are correct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from . import graphs


@pytest.mark.parametrize(
    ("precision", "off_by"),
    [
        ("fp16", 2e-3),
        ("bf16", 2e-2),
        ("int8", 8e-2),
        pytest.param("fp8", 1.5e-1, marks=pytest.mark.slow),
    ],
)
def test_every_precision_computes_nearly_the_same(
    tmp_path: Path, precision: str, off_by: float
) -> None:
    batch = graphs.images(2)
    expected = graphs.as_written(graphs.save_resnet(tmp_path / "fp32.onnx"), batch)
    graph = graphs.save_resnet(tmp_path / "model.onnx", precision)
    onnx.checker.check_model(str(graph), full_check=True)
    actual = graphs.as_written(graph, batch)
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert 0 < error < off_by


def test_the_batch_is_dynamic_unless_it_is_fixed() -> None:
    dynamic, fixed = graphs.small_resnet(), graphs.small_resnet(batch=4)
    assert dynamic.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 4
