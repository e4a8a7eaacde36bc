"""Decoding, selection and NMS against torchvision's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from optimizer.data import Preprocessing
from optimizer.models import DetectorSpec
from optimizer.models.detectors import torchvision_detector
from optimizer.tasks.boxes import BoxReader, Detections, iou_matrix

SIZE, CLASSES = 96, 5


def _outputs(spec: DetectorSpec, seed: int, mean: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    outputs = random.normal(0, 1, spec.output_shape).astype(np.float32)
    outputs[:, spec.box_values :] = random.normal(mean, 2, (len(outputs), spec.num_classes))
    if spec.kind == "fcos":
        outputs[:, :4] = np.abs(outputs[:, :4])
    return outputs


@pytest.mark.parametrize("mean", [-5.0, 1.0, -40.0])
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_it_is_torchvisions(kind: str, mean: float) -> None:
    """With few candidates, with more than a level keeps, and with none."""
    spec = DetectorSpec.of(kind, SIZE, CLASSES)
    outputs = _outputs(spec, 0, mean)
    found = BoxReader(spec, Preprocessing.detection(SIZE)).read(outputs, (SIZE, SIZE))

    network = torchvision_detector(kind, "resnet18", CLASSES).eval()
    levels = [torch.zeros(1, 1, grid, grid) for grid in spec.grids]
    image_list = ImageList(torch.zeros(1, 3, SIZE, SIZE), [(SIZE, SIZE)])
    anchors = network.anchor_generator(image_list, levels)
    counts = list(spec.anchors_per_level)
    raw = torch.from_numpy(outputs)[None]
    heads = {"bbox_regression": raw[..., :4], "cls_logits": raw[..., spec.box_values :]}
    if kind == "fcos":
        heads["bbox_ctrness"] = raw[..., 4:5]
    split = {name: list(values.split(counts, dim=1)) for name, values in heads.items()}
    per_level = [list(anchors[0].split(counts))]
    (expected,) = network.postprocess_detections(split, per_level, [(SIZE, SIZE)])

    boxes = expected["boxes"].numpy()
    kept = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=SIZE) >= 0.5
    assert kept.mean() > 0.5 if mean != -40 else len(boxes) == len(found.scores) == 0
    np.testing.assert_allclose(found.scores, expected["scores"].numpy()[kept], atol=1e-6)
    np.testing.assert_array_equal(found.classes, expected["labels"].numpy()[kept])
    np.testing.assert_allclose(found.boxes, boxes[kept], atol=1e-3)


def test_boxes_are_in_pixels_of_the_original_image() -> None:
    spec = DetectorSpec.of("retinanet", SIZE, 1)
    anchors = spec.anchors()
    inside = (anchors[:, :2] >= 8).all(axis=1) & (anchors[:, 2] <= 88) & (anchors[:, 3] <= 40)
    chosen = int(np.flatnonzero(inside)[0])
    outputs = np.full(spec.output_shape, -20, np.float32)
    outputs[:, :4] = 0
    outputs[chosen, 4] = 5
    found = BoxReader(spec, Preprocessing.detection(SIZE)).read(outputs, (192, 96))
    np.testing.assert_allclose(found.boxes, 2 * anchors[chosen][None], rtol=1e-6)
    # A third of the height is the image; the rest of the letterbox is cut off.
    low = BoxReader(spec, Preprocessing.detection(SIZE)).read(outputs, (192, 20))
    assert low.boxes[:, 3].max() <= 20


def test_intersection_over_union() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 0, 0]], np.float32)
    b = np.array([[1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 2, 2]], np.float32)
    np.testing.assert_allclose(iou_matrix(a, b), [[1 / 3, 0, 1], [0, 0, 0]])


def test_detections_above_a_score() -> None:
    scores = np.array([0.9, 0.5, 0.2], np.float32)
    found = Detections(np.zeros((3, 4), np.float32), scores, np.arange(3))
    assert found.above(0.5).classes.tolist() == [0, 1]
