"""The stem's max pooling: ONNX pads with minus infinity, but a kernel may pad with zeros.

After a ReLU both are equivalent. In an INT8 graph for TensorRT, saturation of the following Q may
replace the ReLU: then the input of the pooling must not be shifted.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from optimizer.graphs.topology import analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8.shift import shiftable
from optimizer.targets.rules import TARGETS
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import TENSORRT, lowered

SIDE = 8


def pool(values: np.ndarray, border: float) -> np.ndarray:
    """The stem's max pooling (3 x 3, stride 2, one pixel of padding), padded with ``border``."""
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=border)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows[:, :, ::2, ::2].max(axis=(4, 5))


def test_the_reference_pooling_agrees_with_onnxruntime() -> None:
    node = helper.make_node(
        "MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    shape = [1, 2, SIDE, SIDE]
    graph = helper.make_graph(
        [node],
        "pool",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = -np.abs(np.random.default_rng(0).standard_normal(shape, np.float32))
    (actual,) = session.run(None, {"x": values})
    np.testing.assert_array_equal(actual, pool(values, -np.inf))


def test_zero_padding_is_correct_after_a_relu_and_wrong_when_shifted() -> None:
    values = np.random.default_rng(0).standard_normal((4, 8, SIDE, SIDE), np.float32)
    positive = np.maximum(values, 0)
    np.testing.assert_array_equal(pool(positive, 0.0), pool(positive, -np.inf))
    middle = 128 * float(positive.max()) / 255
    shifted = values - middle
    right, wrong = (np.maximum(pool(shifted, border) + middle, 0) for border in (-np.inf, 0.0))
    np.testing.assert_allclose(right, pool(positive, -np.inf), atol=1e-6)
    inside = (slice(None), slice(None), slice(1, None), slice(1, None))
    np.testing.assert_array_equal(wrong[inside], right[inside])
    edge = np.ones_like(right, bool)
    edge[inside] = False
    assert (wrong[edge] > right[edge] + 0.1).mean() > 0.5, "most border values should differ"


def padded_with_zeros(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as computed by kernels whose max pooling pads with zeros."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = []
    for node in changed.graph.node:
        if node.op_type == "MaxPool":
            pads = next(list(a.ints) for a in node.attribute if a.name == "pads")
            full = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
            name = f"{node.name}.pads"
            changed.graph.initializer.append(numpy_helper.from_array(full, name))
            nodes.append(
                helper.make_node(
                    "Pad", [node.input[0], name], [f"{node.name}.padded"], mode="constant"
                )
            )
            node.input[0] = f"{node.name}.padded"
            kept = [a for a in node.attribute if a.name != "pads"]
            del node.attribute[:]
            node.attribute.extend(kept)
        nodes.append(node)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def logits(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_graphs_for_tensorrt_do_not_depend_on_the_padding_of_max_pooling(
    seed: int, bottleneck: bool
) -> None:
    import onnx_ir as ir

    options = EncodingOptions(method="minmax", bias_correction="none", equalize=False, shift=True)
    model, encodings = lowered(
        lambda: network(seed, bottleneck=bottleneck), TARGETS["tensorrt-cpu"], options
    )
    if bottleneck:
        assert any(tensor.shifted for tensor in encodings.tensors.values())
    written = ir.to_proto(model)
    batch = images(8, 3)
    np.testing.assert_array_equal(logits(padded_with_zeros(written), batch), logits(written, batch))


def test_pooling_without_padding_is_shifted() -> None:
    model = network(0, bottleneck=True)
    for node in model.graph:
        if node.op_type == "MaxPool":
            del node.attributes["pads"]
    assert "maxpool" in shiftable(analyse(model), TENSORRT)
