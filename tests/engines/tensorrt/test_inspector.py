"""The inspector's JSON in the schemas of TensorRT 10 and 11, written from their documentation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from optimizer.engines.tensorrt.inspector import layers_in_json
from optimizer.engines.tensorrt.layers import describe, precision_of
from optimizer.errors import ArtifactError


def conv_10(
    name: str, kind: str, weights: str, *, tactic: str = "sm80_xmma_fprop"
) -> dict[str, Any]:
    tensor = {"Location": "Device", "Dimensions": [8, 64, 56, 56], "Format/Datatype": kind}
    return {
        "Name": f"{name}.weight + {name} + {name.replace('conv2', 'add')}",
        "LayerType": "CaskConvolution",
        # The second input is the residual: it may have another type than the product.
        "Inputs": [{"Name": "x", **tensor}, {"Name": "r", **tensor, "Format/Datatype": "Half"}],
        "Outputs": [{"Name": "y", **tensor}],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 36864},
        "Bias": {"Type": "Float", "Count": 64},
        "TacticName": tactic,
        "TacticValue": "0xef01fb6e433afa50",
        "StreamId": 0,
        "Metadata": f"[ONNX Layer: {name}]\u001e[ONNX Layer: {name.replace('conv2', 'add')}]",
    }


def conv_11(name: str, kind: str) -> dict[str, Any]:
    def tensor(shape: list[int], datatype: str) -> dict[str, Any]:
        return {"Name": "t", "Dimensions": shape, "Datatype": datatype, "Format": "NHWC"}

    return {
        "Name": f"{name}_myl0_7",
        "LayerType": "correlation",
        "Inputs": [tensor([-1, 64, 56, 56], kind)],
        "Constants": [
            tensor([1], "Float"),
            tensor([64, 64, 3, 3], kind),
            tensor([1, 64, 1, 1], "Float"),
        ],
        "Outputs": [tensor([-1, 64, 56, 56], "Float")],
        "TacticName": "sm90_xmma_fprop",
        "StreamId": 0,
        "Metadata": f"[ONNX Layer: {name}]\u001f[ONNX Layer: {name}.weight.dequantize]",
    }


def ten(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["images", "logits"]})


def eleven(*layers: Any) -> str:
    tensor = {"Name": "images", "IOMode": "Input", "DataType": "Float", "Location": "Device"}
    return json.dumps({"Layers": list(layers), "I/O Tensors": [tensor]})


INT8_10 = "Thirty-two wide channel vectorized row major Int8 format"


@pytest.mark.parametrize(
    ("kind", "weights", "precision"),
    [
        (INT8_10, "Int8", "int8"),
        ("Channel major FP16 format where channel % 8 == 0", "Half", "fp16"),
        ("Row major linear FP32", "Float", "fp32"),
        ("Row major linear BFloat16 format", "BFloat16", "bf16"),
        # INT8 weights that are widened before the product: not an INT8 convolution.
        ("Half", "Int8", "fp16"),
    ],
)
def test_schema_of_10(kind: str, weights: str, precision: str) -> None:
    (layer,) = describe(layers_in_json(ten(conv_10("layer1.0.conv2", kind, weights))), batch=8)
    assert layer.precision == precision
    assert layer.torch_names == ["layer1.0.conv2", "layer1.0.add"]
    assert layer.tactic == "sm80_xmma_fprop"


def test_tf32_from_the_tactic() -> None:
    entry = conv_10("conv1", "Float", "Float", tactic="sm80_xmma_fprop_tf32f32_tf32f32_f32")
    assert describe(layers_in_json(ten(entry)))[0].precision == "tf32"
    assert (
        describe(layers_in_json(eleven(conv_11("conv1", "Float"))), tf32=True)[0].precision
        == "tf32"
    )


def test_a_convolution_fused_with_pooling() -> None:
    entry = conv_10("conv1", INT8_10, "Int8")
    entry["ConvWeights"] = entry.pop("Weights")
    entry["LayerType"] = "ConvActPool"
    entry["Metadata"] += "\u001e[ONNX Layer: maxpool]"
    (layer,) = describe(layers_in_json(ten(entry)))
    assert (layer.precision, layer.torch_names[-1]) == ("int8", "maxpool")


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("Int8", "int8"), ("FP8", "fp8"), ("Half", "fp16"), ("BFloat16", "bf16")],
)
def test_schema_of_11(kind: str, precision: str) -> None:
    (layer,) = describe(layers_in_json(eleven(conv_11("layer1.0.conv2", kind))))
    assert layer.precision == precision
    assert layer.torch_names == ["layer1.0.conv2"]


def test_kernels_around_a_convolution_do_not_claim_it() -> None:
    around = {
        "Name": "__myl_MulCastAddRelu_myl0_8",
        "LayerType": "kgen",
        "Inputs": [{"Name": "t", "Dimensions": [-1, 64, 56, 56], "Datatype": "Float"}],
        "Outputs": [{"Name": "u", "Dimensions": [-1, 64, 56, 56], "Datatype": "Int8"}],
        "TacticName": "__myl_MulCastAddRelu_0x1",
        "Metadata": "[ONNX Layer: layer1.0.conv2]\u001f[ONNX Layer: layer1.0.relu_1]",
    }
    layers = describe(layers_in_json(eleven(around, conv_11("layer1.0.conv2", "Int8"))))
    assert [layer.torch_names for layer in layers] == [["layer1.0.relu_1"], ["layer1.0.conv2"]]
    assert [layer.precision for layer in layers] == ["fp32", "int8"]


def test_a_module_of_two_products_belongs_to_the_one_named_after_it() -> None:
    other = conv_11("layer1.0.conv3", "Int8")
    other["Metadata"] += "\u001f[ONNX Layer: layer1.0.conv2]"
    layers = describe(layers_in_json(eleven(other, conv_11("layer1.0.conv2", "Int8"))))
    assert [layer.torch_names for layer in layers] == [["layer1.0.conv3"], ["layer1.0.conv2"]]


def test_a_product_is_recognized_by_its_weights() -> None:
    bare = conv_11("layer1.0.conv2", "Int8") | {"Name": "__myl_Foo_myl0_3", "LayerType": "kgen"}
    before = bare | {"Name": "__myl_Bar_myl0_2", "Constants": []}
    raw = layers_in_json(eleven(before, bare))
    layers = describe(raw, nodes={"layer1.0.conv2"}, weighted={"layer1.0.conv2"})
    assert [layer.torch_names for layer in layers] == [[], ["layer1.0.conv2"]]
    assert layers[1].precision == "int8"


def test_names_that_are_not_in_the_graph_are_dropped() -> None:
    raw = layers_in_json(eleven(conv_11("made_up", "Int8"), conv_11("conv1", "Int8")))
    layers = describe(raw, nodes={"conv1"}, weighted={"conv1"})
    assert [layer.torch_names for layer in layers] == [[], ["conv1"]]


def test_engine_that_lists_only_names() -> None:
    layers = describe(layers_in_json(ten("conv1 + relu", "layer1.0.conv1")))
    assert [layer.torch_names for layer in layers] == [["conv1", "relu"], ["layer1.0.conv1"]]
    assert {layer.precision for layer in layers} == {"unknown"}


def test_layers_without_tensors_are_left_out() -> None:
    wait = {"Name": "__mye1_myl0_5", "LayerType": "wait", "Inputs": [], "Outputs": []}
    assert describe(layers_in_json(eleven(wait))) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "not json", '{"Layers": [{}]}'])
def test_unreadable_output(text: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        layers_in_json(text)


@pytest.mark.parametrize(
    ("text", "precision"),
    [("UInt8", "uint8"), ("Int32", "int32"), ("FP8", "fp8"), ("Bool", "bool"), ("", "unknown"),
     ("Four wide channel vectorized row major Int8 format", "int8"), ("Row major linear FP32", "fp32"),
     ("Two wide channel vectorized row major FP16 format", "fp16"), ("Complex", "complex")],
)  # fmt: skip
def test_types_as_both_versions_write_them(text: str, precision: str) -> None:
    assert precision_of(text) == precision
