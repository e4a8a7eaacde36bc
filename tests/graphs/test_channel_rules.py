"""Factors and offsets per channel behind a layer, as TensorFlow's converters write a BatchNorm."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.graphs.channel_rules import CHANNEL_RULES
from optimizer.graphs.rewriting import rewriting
from tests.precision.networks import Builder
from tests.precision.test_int8_graphs import run

CHANNELS, SIZE = 4, 6
IMAGES = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
VALUES = np.array([0.5, -2.0, 3.0, 0.25], np.float32)


def graph(*steps: tuple[str, np.ndarray, bool]) -> ir.Model:
    """A convolution, then operations with a constant, on the left where the flag is set."""
    build = Builder(0)
    x = ir.Value(
        name="images",
        shape=ir.Shape(["batch", 3, SIZE, SIZE]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    y = build.conv(x, "conv", CHANNELS, 3)
    for number, (operation, constant, left) in enumerate(steps):
        inputs = [y, build._constant(f"constant{number}", constant)]
        shape = tuple(y.shape[1:])
        y = build._emit(operation, inputs[::-1] if left else inputs, f"step{number}", shape)
    y.name = "logits"
    return build.model(x, y)


def kinds(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


column = VALUES.reshape(CHANNELS, 1, 1)
FOLDED = {
    "BatchNorm of tf2onnx": [("Mul", column, False), ("Add", column[None], False)],
    "constants first": [("Mul", column, True), ("Add", column, True)],
    "Sub": [("Sub", column, False)],
    "Sub from a constant": [("Sub", column, True)],
    "Div": [("Div", column, False)],
    "one value": [("Mul", np.float32([2.0]), False), ("Add", np.float32(0.5).reshape(()), False)],
}


@pytest.mark.parametrize("case", FOLDED)
def test_they_are_folded_and_the_result_stays(case: str) -> None:
    model = graph(*FOLDED[case])
    (expected,) = run(model, IMAGES)
    changes = rewriting("channels", CHANNEL_RULES).run(model)
    assert len(changes) == len(FOLDED[case])
    assert kinds(model) == {"Conv": 1}
    (actual,) = run(model, IMAGES)
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


LEFT = {
    "a constant by position": [("Mul", np.ones((CHANNELS, SIZE, 1), np.float32), False)],
    "a constant by column": [("Add", np.ones(SIZE, np.float32), False)],
    "a constant divided by the output": [("Div", column, True)],
    "division by zero": [("Div", np.zeros((CHANNELS, 1, 1), np.float32), False)],
}


@pytest.mark.parametrize("case", LEFT)
def test_others_are_left(case: str) -> None:
    model = graph(*LEFT[case])
    before = kinds(model)
    assert rewriting("channels", CHANNEL_RULES).run(model) == []
    assert kinds(model) == before


def test_a_convolution_that_others_read_is_left() -> None:
    model = graph(("Mul", column, False))
    model.graph.outputs.append(model.graph[0].outputs[0])
    assert rewriting("channels", CHANNEL_RULES).run(model) == []
