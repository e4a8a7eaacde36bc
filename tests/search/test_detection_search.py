"""Mixed precision of a detector: a small one, whose own detections are annotated as objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import optimizer
from optimizer.data import Preprocessing
from optimizer.engines.onnxruntime import as_written
from optimizer.errors import DataError, UsageError
from optimizer.models import DetectorSpec
from optimizer.results import SearchResult, read_result
from optimizer.search import search_path
from optimizer.tasks.boxes import BoxReader

SIDE, WIDTH, NAMES = 32, 8, ("ant", "bee")
SPEC = DetectorSpec.of("fcos", SIDE, len(NAMES))
PREPROCESSING = Preprocessing.detection(SIDE)
HOSTILE = "mixing"
VALUES = SPEC.box_values + len(NAMES)


def _graph(path: Path) -> Path:
    """Five levels of one anchor per position; `HOSTILE` reads one channel a thousand times as large.

    The weights for that channel are a thousand times smaller, so that the FP32 network does not
    change, but INT8 rounds the other channels to almost nothing.
    """
    random = np.random.default_rng(4)
    constants: dict[str, np.ndarray] = {}
    nodes: list[Any] = []

    def conv(name: str, source: str, outputs: int, kernel: int, stride: int) -> str:
        inputs = 3 if source == "images" else WIDTH
        deviation = 1.5 / np.sqrt(inputs * kernel * kernel)
        weight = random.normal(0, deviation, (outputs, inputs, kernel, kernel))
        constants[f"{name}.weight"] = weight.astype(np.float32)
        constants[f"{name}.bias"] = np.full(outputs, 0.1, np.float32)
        values = [source, f"{name}.weight", f"{name}.bias"]
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", values, [name], name=name, **sizes))
        return name

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"], name=f"{source}.relu"))
        return f"{source}.relu"

    level = relu(conv(HOSTILE, relu(conv("stem", "images", WIDTH, 8, 8)), WIDTH, 1, 1))
    levels = []
    for number, grid in enumerate(SPEC.grids):
        if number:
            stride = SPEC.grids[number - 1] // grid
            level = relu(conv(f"down{number}", level, WIDTH, stride, stride))
        head = conv(f"head{number}", level, VALUES, 1, 1)
        bias = np.array([0.5] * 4 + [2.0] + [-0.3] * len(NAMES), np.float32)
        constants[f"{head}.bias"] = bias
        nodes.append(
            helper.make_node(
                "Transpose", [head], [f"moved{number}"], f"moved{number}", perm=[0, 2, 3, 1]
            )
        )
        constants[f"flat{number}"] = np.array([0, grid * grid, VALUES], np.int64)
        flat = [f"moved{number}", f"flat{number}"]
        nodes.append(helper.make_node("Reshape", flat, [f"level{number}"], f"level{number}"))
        levels.append(f"level{number}")
    nodes.append(helper.make_node("Concat", levels, ["head"], "concat", axis=1))
    constants["stem.weight"][1] *= 1000
    constants["stem.bias"][1] *= 1000
    constants[f"{HOSTILE}.weight"][:, 1] /= 1000
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("head", TensorProto.FLOAT, ["n", *SPEC.output_shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    entries = {
        "preprocessing": json.dumps(PREPROCESSING.to_dict()), "arch": "tiny", "batch": "dynamic",
        "classes": json.dumps(NAMES), "detector": json.dumps(SPEC.to_dict()), "precision": "fp32",
    }  # fmt: skip
    helper.set_model_props(model, {f"resnet_opt.{key}": text for key, text in entries.items()})
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def _data(graph: Path, folder: Path, count: int, seed: int) -> Path:
    """A COCO file whose objects are the best detections of the graph."""
    random, network = np.random.default_rng(seed), as_written(graph)
    reader = BoxReader(SPEC, PREPROCESSING)
    folder.mkdir()
    images, annotations = [], []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        image = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        found = reader.read(network.run(PREPROCESSING.apply(image)[None])[0], image.size)
        for box, label in list(zip(found.boxes.tolist(), found.classes.tolist(), strict=True))[:2]:
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": bbox}
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "objects.json").write_text(json.dumps(content))
    return folder / "objects.json"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _graph(tmp_path_factory.mktemp("detector") / "detector.onnx")


@pytest.mark.long
def test_the_layer_that_loses_detections_is_kept(graph: Path, tmp_path: Path) -> None:
    output = tmp_path / "mixed.onnx"
    written = optimizer.quantize(
        graph,
        output,
        precision="mixed",
        target="onnxruntime",
        calib=str(_data(graph, tmp_path / "calib", 60, 1)),
        calib_images=24,
        data=str(_data(graph, tmp_path / "data", 60, 2)),
        max_drop="5pp",
        max_lost="25%",
        method="minmax",
        equalize=False,
        workers=0,
    )
    result = read_result(search_path(output))
    assert isinstance(result, SearchResult)
    first, chosen = result.front[0], result.front[result.chosen]
    assert not first.inside
    assert first.losses > chosen.losses
    assert HOSTILE in chosen.kept
    assert len(chosen.kept) < len(result.sensitivity)
    assert chosen.inside
    assert "detections on 36 search images are lost" in result.finding
    assert written.search is not None
    verdict = written.search.validation
    assert verdict is not None
    assert verdict.task == "detection"
    assert verdict.gates.max_lost == 0.25
    lost = verdict.hops[-1].detection
    assert lost is not None
    assert lost.lost is not None
    assert lost.lost <= 0.25 * verdict.hops[0].detection.detections  # type: ignore[union-attr]


def test_images_without_boxes_are_refused(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one class per image, but the network is a detector"):
        optimizer.quantize(
            graph, tmp_path / "m.onnx", precision="mixed", calib="digits:train", data="digits:test"
        )


def test_a_classifier_has_no_detections_to_lose(small_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-lost limits lost detections"):
        optimizer.quantize(
            small_graph,
            tmp_path / "m.onnx",
            precision="mixed",
            calib="digits:train",
            data="digits:test",
            max_lost="3%",
        )
