"""Notes about weights on a CPU that accumulates products in 16 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from optimizer.artifacts import manifest_path
from optimizer.engines.saturation import saturation_note
from optimizer.precision import quantize
from optimizer.targets import rules
from optimizer.targets.hardware import cpu_features


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "cpu_features", lambda: replace(cpu_features(), vnni=False))


@pytest.mark.usefixtures("old_cpu")
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_saturating_weights_are_counted(
    target: str, small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "int8.onnx"
    quantize(small_graph, graph, precision="int8", target=target, stats=small_statistics)
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
    manifest_path(graph).unlink()  # it describes the file before
    note = saturation_note(graph, target)
    assert note is not None
    assert note.startswith("no VNNI: 3 of 4810 channels have weights")
    assert f"resnet-opt quantize int8.onnx --precision int8 --target {target}" in note
