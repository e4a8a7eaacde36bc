"""Cutting the constants of a graph: float and Q/DQ, ordinary and grouped convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import GraphError
from optimizer.graphs.narrowing import narrow_convolutions
from optimizer.graphs.onnx_files import write_graph


def _graph(*, quantized: bool, groups: int = 1) -> ir.Model:
    """Two convolutions: 3 to 8 channels, then 8 to 4."""
    rng = np.random.default_rng(0)
    nodes, constants = [], {}
    for name, source, shape in (
        ("first", "x", (8, 3, 3, 3)),
        ("second", "a", (4, 8 // groups, 1, 1)),
    ):
        weight, bias = f"{name}.weight", f"{name}.bias"
        constants[bias] = rng.normal(size=shape[0]).astype(np.float32)
        if quantized:
            constants[f"{weight}.q"] = rng.integers(-127, 128, shape).astype(np.int8)
            constants[f"{weight}.scale"] = rng.uniform(0.01, 0.1, shape[0]).astype(np.float32)
            constants[f"{weight}.zero_point"] = np.zeros(shape[0], np.int8)
            inputs = [f"{weight}.{part}" for part in ("q", "scale", "zero_point")]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [weight], axis=0))
        else:
            constants[weight] = rng.normal(size=shape).astype(np.float32)
        group = groups if name == "second" else 1
        output = "a" if name == "first" else "y"
        nodes.append(
            helper.make_node("Conv", [source, weight, bias], [output], name=name, group=group)
        )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def _run(model: ir.Model, path: Path) -> np.ndarray:
    import onnxruntime

    write_graph(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(1, 3, 6, 6)).astype(np.float32)
    output: np.ndarray = session.run(None, {"x": x})[0]
    return output


@pytest.mark.parametrize("quantized", [False, True])
def test_what_is_left_computes_as_if_the_rest_were_zero(quantized: bool, tmp_path: Path) -> None:
    whole = _graph(quantized=quantized)
    name = "second.weight.q" if quantized else "second.weight"
    value = whole.graph.initializers[name]
    assert value.const_value is not None
    masked = value.const_value.numpy().copy()
    masked[:, 5:] = 0
    value.const_value = ir.tensor(masked, name=name)
    narrow = _graph(quantized=quantized)
    narrow_convolutions(narrow, {"first": (3, 5), "second": (5, 4)})
    np.testing.assert_allclose(
        _run(narrow, tmp_path / "n.onnx"), _run(whole, tmp_path / "w.onnx"), rtol=1e-4, atol=1e-4
    )


def test_groups_keep_their_size(tmp_path: Path) -> None:
    narrow = _graph(quantized=False, groups=4)
    narrow_convolutions(narrow, {"first": (3, 4), "second": (4, 2)})
    (node,) = [n for n in narrow.graph if n.name == "second"]
    assert node.attributes.get_int("group") == 2
    narrow.graph.outputs[0].shape = ir.Shape([1, 2, 4, 4])
    assert _run(narrow, tmp_path / "n.onnx").shape == (1, 2, 4, 4)


def test_unknown_layers_are_named() -> None:
    with pytest.raises(GraphError, match=r"no convolution layer1\.0\.conv1"):
        narrow_convolutions(_graph(quantized=False), {"layer1.0.conv1": (3, 4)})
