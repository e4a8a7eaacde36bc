"""Invalid graphs: each error is one line with the place, and a hint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.engines.tensorrt.graph_check import check_graph, place
from optimizer.errors import GraphError

from . import graphs

Write = Callable[[Path], None]


def _truncated(path: Path) -> None:
    graphs.save_resnet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _flipped(path: Path) -> None:
    graphs.save_resnet(path)
    whole = bytearray(path.read_bytes())
    for place_ in range(4, 400, 3):
        whole[place_] ^= 0xFF
    path.write_bytes(bytes(whole))


def _no_nodes(path: Path) -> None:
    model = graphs.small_resnet()
    del model.graph.node[:]
    path.write_bytes(model.SerializeToString())


def _opset(path: Path) -> None:
    model = graphs.small_resnet()
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())


def _external(path: Path, location: str = "weights.bin") -> None:
    onnx.save_model(
        graphs.small_resnet(),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def _missing_data(path: Path) -> None:
    _external(path)
    path.with_name("weights.bin").unlink()


def _data_elsewhere(path: Path) -> None:
    _external(path, "../weights.bin")


def _double(path: Path) -> None:
    model = graphs.small_resnet()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    path.write_bytes(model.SerializeToString())


def _double_weights(path: Path) -> None:
    model = graphs.small_resnet()
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())


def _two_outputs(path: Path) -> None:
    model = graphs.small_resnet()
    model.graph.output.append(
        helper.make_tensor_value_info("fc.out", TensorProto.FLOAT, ["batch", graphs.CLASSES])
    )
    path.write_bytes(model.SerializeToString())


def _any_size(path: Path) -> None:
    model = graphs.small_resnet()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    path.write_bytes(model.SerializeToString())


def _text(path: Path) -> None:
    path.write_text("import torch\nprint('hello')\n")


def _cycle(path: Path) -> None:
    model = graphs.small_resnet()
    model.graph.node[0].input[0] = "relu.out"
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("write", "wrong", "hint"),
    [
        (lambda p: p.write_bytes(b""), "is an empty file", "export"),
        (_text, "not an ONNX file|holds no graph", "export"),
        (_truncated, "truncated", "export"),
        (_flipped, "truncated|not valid ONNX|holds no graph", "export"),
        (_no_nodes, "holds no graph", "export"),
        (_opset, "opset 99", "operator set 20"),
        (_missing_data, r"weights\.bin, which is not beside it", "copy the data file"),
        (_data_elsewhere, "outside its folder", "one file"),
        (_double, "contradict each other.*conv1", "export"),
        (_double_weights, "contradict each other.*node name: fc", "export"),
        (_two_outputs, "2 outputs", "export"),
        (_any_size, r"\? x 3 x \? x 16", "--image-size"),
        (_cycle, "topologically sorted", "export"),
        (lambda p: None, "no such file", "path"),
    ],
    ids=["empty", "text", "truncated", "flipped", "no-nodes", "opset-99", "missing-data",
         "data-elsewhere", "double", "double-weights", "two-outputs", "any-size", "cycle", "no-file"],
)  # fmt: skip
def test_invalid_file_is_rejected(tmp_path: Path, write: Write, wrong: str, hint: str) -> None:
    path = tmp_path / "model.onnx"
    write(path)
    with pytest.raises(GraphError, match=wrong) as caught:
        check_graph(path)
    assert "\n" not in str(caught.value)
    assert hint in str(caught.value.hint)


def _zero_point(path: Path, value: np.generic, name: str = "conv1.input") -> None:
    model = graphs.small_resnet("int8")
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}.zero_point":
            shape = tuple(tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(np.full(shape, value), tensor.name))
    path.write_bytes(model.SerializeToString())


def _no_zero_point(path: Path) -> None:
    model = graphs.small_resnet("int8")
    for node in model.graph.node:
        if node.name.startswith("layer1.0.conv2.input."):
            del node.input[2]  # then both have zero point 0 of UINT8
    path.write_bytes(model.SerializeToString())


def _int32_bias(path: Path) -> None:
    model = graphs.small_resnet("int8", high="fp32")
    graph = model.graph
    (conv,) = [node for node in graph.node if node.name == "layer2.0.conv1"]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.arange(64, dtype=np.int32), "bias.low"),
            numpy_helper.from_array(np.float32(0.001), "bias.scale"),
        ]
    )
    node = helper.make_node(
        "DequantizeLinear",
        ["bias.low", "bias.scale"],
        ["bias.dq"],
        name="layer2.0.conv1.bias.dequantize",
    )
    graph.node.insert(list(graph.node).index(conv), node)
    conv.input[2] = "bias.dq"
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("write", "node", "layer", "wrong"),
    [
        (
            lambda p: _zero_point(p, np.int8(3)),
            "conv1.input.quantize",
            "conv1",
            "zero point other than 0",
        ),
        (lambda p: _zero_point(p, np.uint8(0)), "conv1.input.quantize", "conv1", "UINT8"),
        (lambda p: _zero_point(p, np.uint8(128)), "conv1.input.quantize", "conv1", "UINT8"),
        (
            lambda p: _zero_point(p, np.int8(1), "layer1.0.conv1.weight"),
            "layer1.0.conv1.weight.dequantize",
            "layer1.0.conv1",
            "zero point other than 0",
        ),
        (_no_zero_point, "layer1.0.conv2.input.quantize", "layer1.0.conv2", "UINT8"),
        (_int32_bias, "layer2.0.conv1.bias.dequantize", "layer2.0.conv1", "INT32 bias"),
    ],
    ids=["asymmetric", "u8", "u8-128", "asymmetric-weights", "default-is-u8", "int32-bias"],
)
def test_unsupported_quantization(
    tmp_path: Path, write: Write, node: str, layer: str, wrong: str
) -> None:
    path = tmp_path / "model.onnx"
    write(path)
    with pytest.raises(GraphError, match=wrong) as caught:
        check_graph(path)
    assert f"node {node} (" in caught.value.message
    assert f"PyTorch layer {layer})" in caught.value.message
    assert "resnet-opt quantize" in str(caught.value.hint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "high", "weights"),
    [
        ("fp32", None, ("fp32", "fp32")),
        ("fp16", None, ("fp16", "fp16")),
        ("bf16", None, ("bf16", "bf16")),
        ("int8", None, ("int8", "fp16")),
        ("int8", "fp32", ("int8", "fp32")),
        ("fp8", None, ("fp8", "fp16")),
    ],
)
def test_precisions_of_a_graph(
    tmp_path: Path, precision: str, high: str | None, weights: tuple[str, str]
) -> None:
    checked = check_graph(graphs.save_resnet(tmp_path / "model.onnx", precision, high=high))
    assert checked.weights == dict.fromkeys(graphs.MODULES, weights)
    assert checked.gemms == {"fc"}
    assert checked.batch is None
    assert checked.input.shape == (None, 3, 16, 16)


def test_weights_quantized_in_the_graph_are_recognized(tmp_path: Path) -> None:
    """Floating-point weights followed by Q and DQ, as quantization-aware training exports them."""
    model = graphs.small_resnet("int8", high="fp32")
    graph = model.graph
    (low,) = [t for t in graph.initializer if t.name == "fc.weight"]
    (scale,) = [t for t in graph.initializer if t.name == "fc.weight.scale"]
    values = numpy_helper.to_array(low) * numpy_helper.to_array(scale)[:, None]
    low.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "fc.weight"))
    inputs = ["fc.weight", "fc.weight.scale", "fc.weight.zero_point"]
    node = helper.make_node("QuantizeLinear", inputs, ["fc.q"], name="fc.weight.quantize", axis=0)
    (dequantize,) = [n for n in graph.node if n.name == "fc.weight.dequantize"]
    graph.node.insert(list(graph.node).index(dequantize), node)
    dequantize.input[0] = "fc.q"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert check_graph(path).weights["fc"] == ("int8", "fp32")


def test_external_data_beside_the_graph_is_fine(tmp_path: Path) -> None:
    _external(tmp_path / "model.onnx")
    assert check_graph(tmp_path / "model.onnx").precisions == {"fp32"}


def test_a_place_without_a_module() -> None:
    assert place("", "Conv") == "node (unnamed) (Conv)"
    assert place("layer1.0.add", "Add") == "node layer1.0.add (Add, PyTorch layer layer1.0.add)"
