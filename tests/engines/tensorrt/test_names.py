from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.engines.tensorrt.names import module_path, modules_in

part = st.text("abcdefghijklmno0123456789_", min_size=1, max_size=7).map("x".__add__)
modules = st.lists(part, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("conv1", "conv1"),
        ("layer1.0.downsample.0", "layer1.0.downsample.0"),
        ("layer1.0.conv2.input.quantize", "layer1.0.conv2"),
        ("layer1.0.add.residual.dequantize", "layer1.0.add"),
        ("/conv1/Conv", "conv1"),
        ("/layer1/layer1.0/conv2/Conv", "layer1.0.conv2"),
        ("/layer1/layer1.0/downsample/downsample.0/Conv", "layer1.0.downsample.0"),
        ("/Flatten", None),
        ("", None),
        ("conv 1", None),
    ],
)
def test_the_module_of_a_node(node: str, module: str | None) -> None:
    assert module_path(node) == module


@pytest.mark.parametrize("separator", ["", "\x1e", "\x1f"])
@given(names=st.lists(modules, min_size=1, max_size=5, unique=True))
def test_metadata_with_any_separator(separator: str, names: list[str]) -> None:
    metadata = separator.join(f"[ONNX Layer: {name}]" for name in names)
    assert modules_in("__myl_Fc_myl0_1", metadata) == names


def test_quantization_and_casts_are_not_modules() -> None:
    metadata = (
        "[ONNX Layer: images.cast][ONNX Layer: conv1.input.quantize][ONNX Layer: conv1]"
        "[ONNX Layer: conv1.weight.dequantize][ONNX Layer: conv1]__gemm_from_conv1x1"
    )
    assert modules_in("conv1_myl0_2", metadata) == ["conv1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layer1.0.conv2.weight + layer1.0.conv2 + layer1.0.add + PWN(layer1.0.relu_1)",
         ["layer1.0.conv2", "layer1.0.add", "layer1.0.relu_1"]),
        ("conv1.input.quantize", []),
        ("Reformatting CopyNode for Input Tensor 0 to conv1", []),
        ("{ForeignNode[images.cast...logits.cast]}", []),
        ("__myl_CastMul_myl0_3", []),
    ],
)  # fmt: skip
def test_names_of_fused_layers(name: str, expected: list[str]) -> None:
    assert modules_in(name) == expected
