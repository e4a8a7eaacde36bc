"""A detector from the checkpoint to engines: validated hop by hop, and used to find objects.

Weights are random. What the network itself finds with high scores is annotated as objects, so that its
AP is high, and every change of an engine is a loss.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import optimizer
from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import AccuracyGateFailed, ArtifactError, DataError, UsageError
from optimizer.models import load_model, save_checkpoint
from optimizer.tasks.boxes import BoxReader
from optimizer.tasks.detection_predictions import read_detections
from optimizer.tasks.predictions import read_predictions
from tests.sharing import Shared

pytestmark = pytest.mark.long

SIZE, IMAGES, CLASSES = 64, 8, ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def found(shared: Shared) -> Path:
    """A detector, images with what it finds in them, its graph and an FP16 graph."""

    def make(folder: Path) -> None:
        model = replace(
            load_model("retinanet_resnet18_fpn:random:3"),
            classes=CLASSES,
            preprocessing=Preprocessing.detection(SIZE),
            preprocessing_assumed=False,
        )
        save_checkpoint(model, folder / "detector.safetensors", details={})
        _annotate(model, folder)
        graph = folder / "detector.onnx"
        optimizer.export(folder / "detector.safetensors", graph)
        optimizer.quantize(graph, folder / "half.onnx", precision="fp16")
        optimizer.build(graph, folder / "detector.ort.onnx", engine="onnxruntime")
        _with_noise(folder / "half.onnx", folder / "worse.onnx")

    return shared("detector", make)


def _annotate(model: Any, folder: Path) -> None:
    import torch

    scenes = open_dataset("digits-scenes:test", limit=IMAGES)
    (batch,) = scenes.batches(IMAGES, Preprocessing(resize=None, crop=128), as_uint8=True)
    reader = BoxReader(model.detector, model.preprocessing)
    images, annotations = [], []
    (folder / "images").mkdir()
    for number, pixels in enumerate(batch.images):
        image = Image.fromarray(pixels).crop((0, 0, 128, 96))  # not square: a real letterbox
        image.save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 96})
        with torch.inference_mode():
            raw = model.module(torch.from_numpy(model.preprocessing.apply(image)[None])).numpy()
        best = reader.read(raw[0], image.size)
        large = (best.boxes[:, 2:] - best.boxes[:, :2]).min(axis=1) > 4
        for box, label in list(zip(best.boxes[large], best.classes[large], strict=True))[:4]:
            left, top, right, bottom = map(float, box)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": int(label) + 5,
                    "bbox": [left, top, right - left, bottom - top],
                }
            )  # fmt: skip
    categories = [{"id": index + 5, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "objects.json").write_text(json.dumps(content))


def _with_noise(graph: Path, output: Path) -> None:
    """The graph with damaged weights in one head."""
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("heads.0.classification_head.cls_logits.weight"):
            weights = numpy_helper.to_array(tensor)
            noise = np.random.default_rng(0).normal(0, 2 * weights.std(), weights.shape)
            changed = (weights + noise).astype(weights.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, output)


def _validate(found: Path, *engines: str, **options: Any) -> Any:
    return optimizer.validate(
        [found / name for name in engines],
        **{
            "reference": str(found / "detector.safetensors"),
            "data": str(found / "objects.json"),
            "image_folder": found / "images",
            "max_drop": "5pp",
            "workers": 0,
            **options,
        },
    )


def test_every_hop_is_compared(found: Path, tmp_path: Path) -> None:
    result = _validate(
        found, "detector.ort.onnx", "half.onnx", max_lost="20%", output=tmp_path / "v.json"
    )
    assert result.task == "detection"
    reference, *hops = result.hops
    assert reference.detection.ap > 0.3
    assert reference.detection.by_class.keys() == set(CLASSES)
    assert {hop.precision for hop in hops} == {"fp32", "fp16"}
    for hop in hops:
        changes = hop.detection
        assert hop.drop_ci95_pp[0] <= hop.drop_pp <= hop.drop_ci95_pp[1]
        assert (changes.lost == 0) or hop.precision == "fp16"
        assert hop.sqnr_db > (80 if hop.precision == "fp32" else 40)
        assert changes.lost_ci95[1] > 0  # nothing lost is no proof that nothing can be lost
    assert result.verdict == "pass", result.finding
    assert "AP drop" in result.finding
    assert [check.verdict for check in result.batch_consistency] == ["pass"]
    stored = read_detections(tmp_path / "v.predictions.npz")
    assert stored.keys() == {hop.name for hop in result.hops}
    boxes = sum((d.scores >= 0.3).sum() for d in stored["reference"].values())
    assert boxes == reference.detection.detections
    columns = result.as_table().columns
    assert "AP50" in columns
    with pytest.raises(ArtifactError, match="holds detections"):
        read_predictions(tmp_path / "v.predictions.npz")


def test_a_loss_is_found_and_located(found: Path) -> None:
    result = _validate(found, "worse.onnx", exported=found / "detector.onnx")
    assert result.verdict == "fail"
    hop = result.hops[-1]
    assert hop.detection.lost > 0.2 * result.hops[0].detection.detections
    assert result.first_failing_hop == hop.name
    assert "the loss comes from the conversion to FP16" in result.finding
    assert result.hops[1].verdict == "pass"  # the export before it
    assert hop.worst_image is not None
    with pytest.raises(AccuracyGateFailed):
        optimizer.raise_for_verdict(result)


def test_lost_detections_alone_can_fail(found: Path) -> None:
    result = _validate(found, "worse.onnx", max_drop="100pp", max_lost="1%")
    assert result.verdict == "fail"
    assert "1 % lost detections" in result.finding


def test_a_task_refuses_the_data_and_the_limits_of_another(
    found: Path, small_graph: Path, small_checkpoint: Path
) -> None:
    with pytest.raises(DataError, match="one class per image, but the network is a detector"):
        _validate(found, "half.onnx", data="digits:test", image_folder=None)
    with pytest.raises(UsageError, match="max-flips"):
        _validate(found, "half.onnx", max_flips="1%")
    with pytest.raises(UsageError, match="residual blocks of classifiers"):
        _validate(found, "half.onnx", layers=True)
    with pytest.raises(UsageError, match="max-lost"):
        optimizer.validate(
            small_graph, reference=str(small_checkpoint), data="digits:test", max_lost="1%"
        )
    with pytest.raises(DataError, match="has boxes, but the network is a classifier"):
        optimizer.validate(small_graph, reference=str(small_checkpoint), data="digits-scenes:test")


def test_an_engine_of_the_other_task_fails_with_the_reason(found: Path, small_graph: Path) -> None:
    result = _validate(found, str(small_graph), limit=2)
    assert result.verdict == "fail"
    assert "is a classifier, the reference a detector" in result.finding


def test_predict_finds_and_draws(found: Path, tmp_path: Path) -> None:
    engine = found / "detector.ort.onnx"
    images = found / "images"
    predictions = optimizer.predict(engine, images, score_threshold=0.5, annotate=tmp_path / "out")
    assert len(predictions) == IMAGES
    first = next(p for p in predictions if p.objects)
    assert (first.width, first.height) == (128, 96)
    assert all(o.score >= 0.5 and o.name in CLASSES for o in first.objects)
    assert [o.score for o in first.objects] == sorted(
        (o.score for o in first.objects), reverse=True
    )
    original = np.asarray(Image.open(first.image).convert("RGB"))
    drawn = np.asarray(Image.open(first.annotated))
    assert drawn.shape == original.shape
    assert (drawn != original).any(axis=2).sum() > 50
    same = optimizer.predict(
        found / "detector.safetensors", [images / "0.png"], score_threshold=0.5
    )
    assert [o.index for o in same[0].objects] == [o.index for o in predictions[0].objects]
    copies = tmp_path / "copies"
    shutil.copytree(images, copies)
    pixels = (copies / "0.png").read_bytes()
    with pytest.raises(UsageError, match=r"would overwrite the input 0\.png"):
        optimizer.predict(engine, [copies / "0.png"], annotate=copies, force=True)
    with pytest.raises(UsageError, match=r"0\.png exists and was not written by resnet-opt"):
        optimizer.predict(engine, [images / "0.png"], annotate=copies)
    assert (copies / "0.png").read_bytes() == pixels
    again = optimizer.predict(engine, [images / "0.png"], annotate=tmp_path / "out")
    assert len(again) == 1
    with pytest.raises(UsageError, match="--top is for classifiers"):
        optimizer.predict(engine, images, top=3)
    with pytest.raises(DataError, match="two images would be written"):
        optimizer.predict(engine, [images / "0.png"] * 2, annotate=tmp_path / "out")


def test_a_classifier_refuses_options_of_detectors(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="annotate is for detectors"):
        optimizer.predict(small_checkpoint, tmp_path, annotate=tmp_path / "out")
