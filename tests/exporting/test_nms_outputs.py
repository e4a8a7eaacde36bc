"""Suppression inside the graph finds what the host finds, in ONNX Runtime and OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

import optimizer
from optimizer.artifacts import load_artifact
from optimizer.data import Preprocessing
from optimizer.errors import GraphError, UsageError
from optimizer.exporting.nms_outputs import append_nms
from optimizer.graphs.metadata import write_metadata
from optimizer.graphs.onnx_files import write_graph
from optimizer.models import DetectorSpec
from optimizer.tasks.boxes import BoxReader

SIDE, CLASSES = 64, 3
SIZES = [(64, 64), (96, 48), (30, 60)]
"""Of the original images: square, wide and high, so that letterboxes differ."""


def _graph(folder: Path, spec: DetectorSpec, *, detector: bool = True) -> Path:
    """A graph whose head is its input."""
    shape = ir.Shape(["batch", *spec.output_shape])
    head = ir.Value(name="images", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [head], name="head")
    output = node.outputs[0]
    output.name, output.shape, output.dtype = "head", shape, ir.DataType.FLOAT
    graph = ir.Graph([head], [output], nodes=[node], opset_imports={"": 20}, name="detector")
    model = ir.Model(graph, ir_version=10)
    preprocessing = Preprocessing.detection(SIDE).to_dict()
    described = spec.to_dict() if detector else None
    write_metadata(model, preprocessing=preprocessing, detector=described, precision="fp32")
    write_graph(model, folder / "head.onnx")
    return folder / "head.onnx"


def _heads(spec: DetectorSpec) -> NDArray[np.float32]:
    """Boxes near their anchors, some far outside; many scores above the threshold."""
    random = np.random.default_rng(0)
    heads = random.normal(0, 0.3, (len(SIZES), *spec.output_shape)).astype(np.float32)
    if spec.kind == "fcos":
        heads[..., :4] = np.abs(heads[..., :4]) * 3
        heads[..., 4] = random.normal(2, 1, heads.shape[:2])
    logits = random.normal(-2.5, 1.5, (*heads.shape[:2], CLASSES))
    heads[..., spec.box_values :] = logits
    heads[0, : len(heads[0]) // 2, spec.box_values :] = -20  # levels without candidates
    return heads


def _run(path: Path, library: str, heads: Any, content: Any) -> list[NDArray[Any]]:
    feeds = {"images": heads, "content": content}
    if library == "onnxruntime":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return [np.asarray(value) for value in session.run(None, feeds)]
    import openvino

    # Suppression compares overlaps with a threshold; the default would round them to 16 bits.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return [np.asarray(found[output]) for output in compiled.outputs]


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_the_graph_finds_what_the_host_finds(kind: str, library: str, tmp_path: Path) -> None:
    spec = DetectorSpec.of(kind, SIDE, CLASSES)
    preprocessing = Preprocessing.detection(SIDE)
    append_nms(_graph(tmp_path, spec), tmp_path / "boxes.onnx")
    heads, reader = _heads(spec), BoxReader(spec, preprocessing)
    content = np.array([preprocessing.fitted_size(*size) for size in SIZES], np.float32)
    images, boxes, scores, classes = _run(tmp_path / "boxes.onnx", library, heads, content)
    for number, size in enumerate(SIZES):
        expected = reader.read(heads[number], size)
        own = images == number
        assert len(expected.scores) > 20
        np.testing.assert_array_equal(classes[own], expected.classes)
        np.testing.assert_allclose(scores[own], expected.scores, rtol=1e-5)
        scale = np.array(size, np.float32) / content[number]
        np.testing.assert_allclose(boxes[own] * np.tile(scale, 2), expected.boxes, atol=2e-3)


def test_it_is_written_by_export_and_refused_by_the_chain(tmp_path: Path) -> None:
    graph = _graph(tmp_path, DetectorSpec.of("retinanet", SIDE, CLASSES))
    written = optimizer.export(graph, tmp_path / "boxes.onnx", with_nms=True)
    assert load_artifact(written.path).manifest.settings["nms"] is True
    assert written.max_relative_difference is None
    with pytest.raises(GraphError, match="ends with non-maximum suppression"):
        optimizer.quantize(written.path, tmp_path / "half.onnx", precision="fp16")
    with pytest.raises(UsageError, match="already"):
        optimizer.export(written.path, tmp_path / "twice.onnx", with_nms=True)
    with pytest.raises(UsageError, match="--opset is for models"):
        optimizer.export(graph, tmp_path / "other.onnx", with_nms=True, opset=21)
    with pytest.raises(UsageError, match=r"does not end in \.onnx"):
        optimizer.export(graph, tmp_path / "boxes.txt", with_nms=True)


def test_classifiers_have_no_boxes(small_checkpoint: Path, tmp_path: Path) -> None:
    plain = _graph(tmp_path, DetectorSpec.of("retinanet", SIDE, CLASSES), detector=False)
    for source in (plain, small_checkpoint):
        with pytest.raises(UsageError, match="--with-nms is for detectors"):
            optimizer.export(source, tmp_path / "boxes.onnx", with_nms=True)
