"""Weighted average precision against pycocotools, and the paired bootstrap."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from optimizer.data import Objects
from optimizer.tasks.average_precision import AREAS, MatchTables, bootstrap_drop, match_objects
from optimizer.tasks.boxes import Detections

CLASSES = 4


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corner = random.uniform(0, 150, (count, 2))
    return np.concatenate([corner, corner + random.uniform(5, 140, (count, 2))], 1).astype(
        np.float32
    )


def _objects(seed: int, images: int = 40) -> list[Objects]:
    random = np.random.default_rng(seed)
    found = []
    for image in range(images):
        count = 0 if image == 3 else int(random.integers(0, 6))
        plain = Objects.of_boxes((300, 300), _boxes(random, count), random.integers(0, 3, count))
        crowd = random.random(count) < 0.1
        found.append(Objects(**{**plain.__dict__, "crowd": crowd}))
    return found


def _detections(objects: list[Objects], seed: int, shift: float) -> list[Detections]:
    """Moved objects with some of the wrong class, repeated ones and boxes of nothing; scores tie."""
    random = np.random.default_rng(seed)
    found = []
    for image in objects:
        moved = image.boxes + random.normal(0, shift, image.boxes.shape)
        boxes = np.concatenate([moved, moved[:2] + 1, _boxes(random, int(random.integers(0, 4)))])
        wrong = random.integers(0, CLASSES, len(boxes))
        classes = np.concatenate([image.classes, image.classes[:2], wrong])[: len(boxes)]
        classes = np.where(random.random(len(boxes)) < 0.1, wrong, classes)
        scores = np.round(random.random(len(boxes)), 1)
        order = np.argsort(-scores, kind="stable")
        found.append(
            Detections(
                boxes[order].astype(np.float32),
                scores[order].astype(np.float32),
                classes[order].astype(np.int64),
            )
        )
    return found


def _by_pycocotools(objects: list[Objects], detections: list[Detections]) -> np.ndarray:
    """The library's own summary, from its own loading of results: 12 numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def box(values: np.ndarray) -> list[float]:
        left, top, right, bottom = map(float, values)
        return [left, top, right - left, bottom - top]

    truth: Any = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(objects))],
        "categories": [{"id": k + 1} for k in range(CLASSES)],
        "annotations": [
            {
                "id": 100 * i + m + 1, "image_id": i + 1, "category_id": int(image.classes[m]) + 1,
                "bbox": box(image.boxes[m]), "area": float(image.areas[m]),
                "iscrowd": int(image.crowd[m]),
            }
            for i, image in enumerate(objects)
            for m in range(len(image.classes))
        ],
    }  # fmt: skip
    results = [
        {
            "image_id": i + 1, "category_id": int(found.classes[m]) + 1,
            "bbox": box(found.boxes[m]), "score": float(found.scores[m]),
        }
        for i, found in enumerate(detections)
        for m in range(len(found.classes))
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_equal_weights_it_is_pycocotools(seed: int) -> None:
    objects = _objects(seed)
    detections = _detections(objects, seed, shift=4)
    tables = match_objects(objects, detections, CLASSES)
    ours = [
        tables.mean(),
        tables.mean(iou=0.5),
        tables.mean(iou=0.75),
        *(tables.mean(area) for area in AREAS[1:]),
    ]
    theirs = _by_pycocotools(objects, detections)[:6]
    assert 0.05 < theirs[0] < 0.95
    np.testing.assert_allclose(np.concatenate(ours), theirs, rtol=0, atol=1e-12)


def test_a_weight_of_two_is_an_image_that_occurs_twice() -> None:
    objects = _objects(5, images=12)
    detections = _detections(objects, 5, shift=4)
    chosen = [0, 0, 2, 4, 4, 4, 5, 7, 8, 9, 9, 11]
    weights = np.bincount(chosen, minlength=12).astype(np.float64)[None]
    # Distinct scores, so that no order of ties matters.
    distinct = []
    for number, found in enumerate(detections):
        scores = np.sort(np.random.default_rng(number).random(len(found.scores)))[::-1]
        distinct.append(Detections(found.boxes, scores.astype(np.float32), found.classes))
    weighted = match_objects(objects, distinct, CLASSES).mean(weights=weights)[0]
    repeated = match_objects([objects[i] for i in chosen], [distinct[i] for i in chosen], CLASSES)
    assert weighted == pytest.approx(repeated.mean()[0], abs=1e-12)


def test_draws_are_independent_of_each_other() -> None:
    objects = _objects(6)
    tables = match_objects(objects, _detections(objects, 6, shift=4), CLASSES)
    weights = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=50).astype(float)
    together = tables.mean(weights=weights)
    alone = [tables.mean(weights=row[None])[0] for row in weights]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def _drop(shift: float) -> tuple[MatchTables, MatchTables]:
    objects = _objects(7, images=120)
    exact = match_objects(objects, _detections(objects, 7, shift=2), CLASSES)
    return exact, match_objects(objects, _detections(objects, 7, shift=shift), CLASSES)


def test_the_interval_of_a_drop() -> None:
    exact, worse = _drop(shift=8)
    (low, high), error = bootstrap_drop(exact, worse, draws=200)
    drop = float(exact.mean()[0] - worse.mean()[0])
    assert 0 < low < drop < high
    assert error > 0
    assert bootstrap_drop(exact, exact, draws=50)[0] == (0.0, 0.0)
    assert bootstrap_drop(exact, worse, draws=200) == ((low, high), error)


def test_without_detections_and_without_objects() -> None:
    objects = _objects(8, images=5)
    nothing = Detections(
        np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
    )
    none_found = match_objects(objects, [nothing] * 5, CLASSES)
    assert none_found.mean()[0] == 0
    empty = [Objects.of_boxes((9, 9), np.empty((0, 4), np.float32), ()) for _ in range(5)]
    no_objects = match_objects(empty, _detections(objects, 8, 2), CLASSES)
    assert np.isnan(no_objects.mean()[0])
    assert bootstrap_drop(no_objects, no_objects, draws=3)[0] == (0.0, 0.0)
