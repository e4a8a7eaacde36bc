"""What an engine says of its weights on a CPU that adds products in 16 bits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from optimizer.engines.saturation import saturation_note
from optimizer.targets import rules
from optimizer.targets.hardware import cpu_features
from tests.conftest import Quantized


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "cpu_features", lambda: replace(cpu_features(), vnni=False))


@pytest.mark.usefixtures("old_cpu")
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_only_weights_that_do_not_saturate_are_said_not_to(
    target: str, small_graph: Path, small_quantized: Quantized, tmp_path: Path
) -> None:
    graph = tmp_path / "int8.onnx"
    shutil.copyfile(small_quantized("int8", target), graph)
    assert saturation_note(small_graph, target) is None
    note = saturation_note(graph, target)
    assert note is not None
    assert "none of these weights saturate" in note
    proto = onnx.load(graph)
    weight = next(t for t in proto.graph.initializer if t.name == "layer1.0.conv1.weight.q")
    large = numpy_helper.to_array(weight).copy()
    large[:3] = 127
    weight.CopyFrom(numpy_helper.from_array(large, weight.name))
    onnx.save(proto, graph)
    note = saturation_note(graph, target)
    assert note is not None
    assert note.startswith("no VNNI: 3 of 4810 channels have weights")
    assert f"resnet-opt quantize int8.onnx --precision int8 --target {target}" in note
