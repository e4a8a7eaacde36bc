"""Layers read from what real builds print."""

from __future__ import annotations

import pytest

from optimizer.engines.tensorrt.build_log import layers_in_log
from optimizer.engines.tensorrt.layers import describe
from optimizer.results import LayerInfo

from . import graphs
from .conftest import Build


def by_module(layers: list[LayerInfo]) -> dict[str, LayerInfo]:
    """Layers that compute modules with weights; each of these exactly once."""
    owners: dict[str, LayerInfo] = {}
    for layer in layers:
        for name in layer.torch_names:
            if name in graphs.MODULES:
                assert name not in owners, f"{name} is in {owners[name].name} and in {layer.name}"
                owners[name] = layer
    return owners


@pytest.mark.parametrize(
    ("precision", "target"),
    [("fp32", "sm86"), ("fp16", "sm75"), ("fp16", "sm120"), ("bf16", "sm80"), ("int8", "sm86"),
     ("fp8", "sm89")],
)  # fmt: skip
def test_every_module_is_computed_once_in_the_precision_asked(
    build: Build, precision: str, target: str
) -> None:
    layers = by_module(build(precision, target).layers)
    assert set(layers) == set(graphs.MODULES)
    computed = {name: layer.precision for name, layer in layers.items()}
    if precision == "fp8":
        # TensorRT-RTX keeps the convolution of three channels out of FP8.
        assert computed.pop("conv1") in {"fp8", "fp16"}
    assert set(computed.values()) == {precision}


def test_int8_around_fp32(build: Build) -> None:
    layers = by_module(build("int8", "sm86", high="fp32").layers)
    assert {layer.precision for layer in layers.values()} == {"int8"}


def test_flops_are_those_of_the_graph(build: Build) -> None:
    layers = by_module(build("int8", "sm86").layers)
    assert layers["conv1"].flops == 2 * 32 * 3 * 9 * 16 * 16
    assert layers["layer2.0.downsample.0"].flops == 2 * 64 * 32 * 4 * 4
    assert layers["fc"].flops == 2 * 64 * graphs.CLASSES
    counted = sum(layer.flops or 0 for layer in build("int8", "sm86").layers)
    assert counted == sum(layer.flops or 0 for layer in layers.values())


def test_what_is_fused_keeps_its_names(build: Build) -> None:
    names = [layer.torch_names for layer in build("fp16", "sm86").layers]
    assert ["conv1", "relu"] in names
    (block,) = [n for n in names if "layer1.0.conv2" in n]
    assert {"layer1.0.add", "layer1.0.relu_1"} <= set(block)


def test_bytes_are_those_of_one_image(build: Build) -> None:
    layers = by_module(build("fp16", "sm86").layers)
    activations = (32 * 8 * 8 + 32 * 8 * 8) * 2
    weights = (32 * 32 * 9 + 32) * 2
    extra = layers["layer1.0.conv1"].bytes - activations - weights  # type: ignore[operator]
    assert 0 <= extra <= 16  # alpha and beta


TEN = (
    "Engine Layer Information:\n"
    "Name: layer1.0.conv1.weight + layer1.0.conv1 + PWN(layer1.0.relu), LayerType: CaskConvolution, "
    "Inputs: [ { Name: maxpool.out, Location: Device, Dimensions: [4,64,56,56], Format/Datatype: "
    "Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: y, Location: "
    "Device, Dimensions: [4,64,56,56], Format/Datatype: Thirty-two wide channel vectorized row major "
    'Int8 format }], ParameterType: Convolution, Kernel: [3,3], Weights: {"Type": "Int8", "Count": '
    '36864}, Bias: {"Type": "Float", "Count": 64}, TacticName: sm80_xmma_fprop_i8i8_i8i32_f32, '
    "TacticValue: 0xef01fb6e433afa50, StreamId: 0, Metadata: [ONNX Layer: layer1.0.conv1]\x1e"
    "[ONNX Layer: layer1.0.relu]\n"
)


def test_the_format_of_tensorrt_10() -> None:
    (layer,) = describe(layers_in_log(["something else", TEN]), batch=4)
    assert layer.torch_names == ["layer1.0.conv1", "layer1.0.relu"]
    assert layer.precision == "int8"
    assert layer.tactic == "sm80_xmma_fprop_i8i8_i8i32_f32"
    assert layer.bytes == 2 * 64 * 56 * 56


def test_a_log_without_layers() -> None:
    assert layers_in_log(["[I] LayerType: nothing that looks like one", "Name: x", ""]) == []
