"""The same network with different weights, or a different network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimizer.engines.tensorrt.same_network import check_same_network, check_same_weights
from optimizer.errors import GraphError

from . import graphs

Change = Callable[[onnx.ModelProto], None]


def save(path: Path, precision: str, change: Change | None = None) -> Path:
    model = graphs.small_resnet(precision)
    if change is not None:
        change(model)
    path.write_bytes(model.SerializeToString())
    return path


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (expected,) = [t for t in model.graph.initializer if t.name == name]
    return expected


def replace(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(values, name))


def other_weights(model: onnx.ModelProto) -> None:
    for one in model.graph.initializer:
        values = numpy_helper.to_array(one)
        if values.ndim >= 2:
            one.CopyFrom(numpy_helper.from_array((values[::-1] * 1).copy(), one.name))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_same_network_with_other_weights(tmp_path: Path, precision: str) -> None:
    old = save(tmp_path / "old.onnx", precision)
    new = save(tmp_path / "new.onnx", precision, other_weights)
    assert old.read_bytes() != new.read_bytes()
    check_same_network(old, new)


def test_identical_weights(tmp_path: Path) -> None:
    """A stripped engine accepts only the weights it was compiled with."""
    old = save(tmp_path / "old.onnx", "fp16")
    check_same_weights(old, save(tmp_path / "same.onnx", "fp16"))
    new = save(tmp_path / "new.onnx", "fp16", other_weights)
    with pytest.raises(GraphError, match=r"new\.onnx has a different .* than old\.onnx") as caught:
        check_same_weights(old, new)
    assert "--refittable" in str(caught.value.hint)


def fewer_classes(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(tensor(model, "fc.weight"))
    replace(model, "fc.weight", values[:-1].copy())


def other_stride(model: onnx.ModelProto) -> None:
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    (strides,) = [a for a in conv.attribute if a.name == "strides"]
    strides.ints[0] += 1


def one_node_less(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    for node in model.graph.node:
        node.input[:] = [relu.input[0] if name == relu.output[0] else name for name in node.input]
    model.graph.node.remove(relu)


def other_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (fewer_classes, "fc.weight is FLOAT16 .*, not FLOAT16 "),
        (other_stride, "with other attributes or inputs"),
        (one_node_less, "nodes, not "),
        (other_size, "its input is .* x 64 x .*, not "),
    ],
)
def test_different_network_is_rejected(tmp_path: Path, change: Change, expected: str) -> None:
    old = save(tmp_path / "old.onnx", "fp16")
    new = save(tmp_path / "new.onnx", "fp16", change)
    with pytest.raises(GraphError, match=f"new.onnx is not the network of old.onnx: .*{expected}"):
        check_same_network(old, new)


def test_another_precision_is_a_different_network(tmp_path: Path) -> None:
    old, new = (save(tmp_path / f"{name}.onnx", name) for name in ("fp16", "fp32"))
    with pytest.raises(GraphError, match="is not the network of"):
        check_same_network(old, new)


def test_other_scales_are_rejected(tmp_path: Path) -> None:
    """Calibration gives new weights new scales, but the kernels contain the old ones."""

    def rescale(model: onnx.ModelProto) -> None:
        quantize = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
        replace(
            model,
            quantize.input[1],
            (numpy_helper.to_array(tensor(model, quantize.input[1])) * 2).astype(np.float16),
        )

    old = save(tmp_path / "old.onnx", "int8")
    new = save(tmp_path / "new.onnx", "int8", rescale)
    with pytest.raises(
        GraphError, match=r"a different scale .* which a refit cannot replace"
    ) as caught:
        check_same_network(old, new)
    assert "resnet-opt build" in str(caught.value.hint)
