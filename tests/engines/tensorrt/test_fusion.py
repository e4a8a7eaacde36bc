"""The note on INT8 that is not fused, for published and own dumps."""

from __future__ import annotations

import pytest

from optimizer.engines.protocol import Built
from optimizer.engines.tensorrt.fusion import fusion_note
from optimizer.engines.tensorrt.inspector import layers_in_json
from optimizer.engines.tensorrt.layers import RawLayer, Tensor

from .conftest import Build
from .test_dumps import dump


def product(inputs: str, outputs: str, profile: int = 0) -> RawLayer:
    shape = (1, 8, 4, 4)
    return RawLayer(
        name="conv",
        type="correlation",
        inputs=[Tensor("x", shape, inputs)],
        outputs=[Tensor("y", shape, outputs)],
        profile=profile,
    )


def test_products_that_write_a_wider_type() -> None:
    layers = [product("int8", "fp32")] * 53 + [product("int8", "int8")] * 1
    note = fusion_note(layers, "TensorRT-RTX")
    assert note is not None
    assert note.startswith("53 of 54 INT8 kernels write a wider type, which TensorRT-RTX quantizes")
    assert "FP16 may be faster" in note
    assert "resnet-opt bench" in note
    assert fusion_note([product("fp8", "fp16")], "TensorRT") is not None


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [product("fp16", "fp16")] * 4,
        [product("int8", "int8")] * 3 + [product("int8", "fp32")] * 3,
        [product("int8", "unknown")] * 4,
        [product("int8", "int8"), product("int8", "fp32", profile=1)],
    ],
)
def test_no_note(layers: list[RawLayer]) -> None:
    assert fusion_note(layers, "TensorRT") is None


@pytest.mark.parametrize(
    "name",
    [
        "pytorch-resnet-A100-qat-residual-resnet-qat-residual.onnx.engine",
        "tensorflow-resnet-RTX-3090-qat-resnet-qat.onnx.engine",
        "pytorch-resnet-A100-fp16-resnet.onnx.engine",
        "own-8-int8",
    ],
)
def test_real_engines_of_tensorrt_8_fuse(name: str) -> None:
    assert fusion_note(layers_in_json(dump(name, "graph.json")), "TensorRT") is None


def test_note_of_a_tensorrt_rtx_build(build: Build) -> None:
    """In a real build: version 1.7 does not fuse anything into INT8 products."""

    def notes(built: Built) -> list[str]:
        return [note for note in built.notes if "FP16 may be faster" in note]

    assert len(notes(build("int8", "sm86"))) == 1
    assert notes(build("fp16", "sm86")) == []
