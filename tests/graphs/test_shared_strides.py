"""Convolutions that share a strided read: exact, only where the rule holds, and its inverse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.graphs.shared_strides import move_strides_to_convolutions, share_strides
from tests.precision.networks import Builder, v1_network
from tests.precision.test_int8_graphs import run


def pair(
    height: int,
    width: int,
    *,
    stride: int = 2,
    kernels: tuple[int, int] = (1, 1),
    dtype: str = "f4",
) -> ir.Model:
    """Two convolutions with stride on one tensor, which is also an output of the graph."""
    build = Builder(0)
    x = ir.Value(
        name="images",
        shape=ir.Shape(["batch", 3, height, width]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    shared = build.relu(x, "relu")
    outputs = [
        build.conv(shared, f"conv{i}", 4, kernel, stride) for i, kernel in enumerate(kernels)
    ]
    for value in outputs:
        value.shape = None  # the builder computes square shapes
    model = build.model(x, outputs[0])
    model.graph.outputs.append(outputs[1])
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    stride=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_the_result_is_equal_bit_for_bit(height: int, width: int, stride: int, seed: int) -> None:
    images = np.random.default_rng(seed).normal(size=(2, 3, height, width)).astype(np.float32)
    model = pair(height, width, stride=stride)
    expected = run(model, images)
    assert share_strides(model) == ["relu"]
    assert operators(model).count("MaxPool") == 1
    for before, after in zip(expected, run(model, images), strict=True):
        assert before.shape == after.shape
        assert np.array_equal(before, after)
    assert move_strides_to_convolutions(model) == ["relu"]
    assert operators(model) == operators(pair(height, width))
    for before, after in zip(expected, run(model, images), strict=True):
        assert np.array_equal(before, after)


def test_a_network_has_one_such_place_in_each_stage_that_halves_the_image() -> None:
    model = v1_network(0)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    (expected,) = run(model, images)
    assert share_strides(model) == ["layer1.1.relu_2", "layer2.1.relu_2"]
    assert share_strides(model) == []
    (actual,) = run(model, images)
    assert np.array_equal(expected, actual)
    pools = [node for node in model.graph if node.op_type == "MaxPool"]
    assert [list(pool.outputs[0].shape)[1:] for pool in pools] == [[64, 8, 8], [128, 4, 4]]


@pytest.mark.parametrize("kernels", [(1, 3), (3, 3)])
def test_kernels_that_read_neighbours_are_left(kernels: tuple[int, int]) -> None:
    model = pair(8, 8, kernels=kernels)
    assert share_strides(model) == []
    assert "MaxPool" not in operators(model)


def test_padding_different_strides_and_single_convolutions_are_left() -> None:
    padded, different, plain = pair(8, 8), pair(8, 8), pair(8, 8, stride=1)
    padded.graph[1].attributes["pads"] = ir.AttrInt64s("pads", [1, 1, 1, 1])
    different.graph[1].attributes["strides"] = ir.AttrInt64s("strides", [3, 3])
    for model in (padded, different, plain):
        assert share_strides(model) == []


def test_other_pooling_keeps_its_stride() -> None:
    model = v1_network(0)
    share_strides(model)
    pools = [node for node in model.graph if node.op_type == "MaxPool"]
    pools[0].attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [3, 3])
    assert move_strides_to_convolutions(model) == ["layer2.1.relu_2"]
