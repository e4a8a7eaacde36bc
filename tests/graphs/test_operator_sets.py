"""Older operator sets: raised for FP16 scales where that is exact, else refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.errors import GraphError
from optimizer.graphs.onnx_files import checker_error, write_graph
from optimizer.graphs.operator_sets import FP16_SCALES, check_raisable, raise_opset
from optimizer.precision.int8 import compute_encodings, lower
from optimizer.targets.rules import TARGETS
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import run, statistics


def of_opset(opset: int) -> ir.Model:
    model = network(0)
    model.graph.opset_imports[""] = opset
    return model


def with_mean() -> ir.Model:
    """A ReduceMean of set 17, whose axes are an attribute; from 18 on they are an input."""
    model = of_opset(17)
    pool = next(n for n in model.graph if n.op_type == "GlobalAveragePool")
    mean = ir.node("ReduceMean", [pool.inputs[0]], attributes={"axes": [2, 3]}, name="mean")
    mean.outputs[0].name = "mean"
    model.graph.insert_before(pool, mean)
    ir.convenience.replace_all_uses_with(pool.outputs[0], mean.outputs[0])
    model.graph.remove(pool, safe=True)
    return model


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_int8_for_tensorrt_of_an_older_set_is_a_valid_graph(opset: int, tmp_path: Path) -> None:
    rules = TARGETS["tensorrt"]
    observed = statistics(of_opset(opset), [images(16)])
    model = of_opset(opset)
    lower(model, compute_encodings(of_opset(opset), observed, rules, "0"), rules)
    assert model.graph.opset_imports[""] == FP16_SCALES
    path = tmp_path / "int8.onnx"
    write_graph(model, path)
    assert checker_error(path) is None


@pytest.mark.parametrize("opset", [13, 17])
def test_raising_does_not_change_the_results(opset: int) -> None:
    model = of_opset(opset)
    (expected,) = run(model, images(4))
    raise_opset(model, FP16_SCALES)
    (actual,) = run(model, images(4))
    assert np.array_equal(expected, actual)


def test_newer_sets_are_left() -> None:
    model = of_opset(20)
    raise_opset(model, FP16_SCALES)
    assert model.graph.opset_imports[""] == 20


def test_operators_that_changed_are_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "mean.onnx"
    write_graph(with_mean(), path)
    with pytest.raises(GraphError, match=r"opset 17, .* ReduceMean has changed .*--opset 20"):
        check_raisable(path, FP16_SCALES)
    write_graph(of_opset(17), path)
    check_raisable(path, FP16_SCALES)
