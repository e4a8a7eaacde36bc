"""The task `Detection` on made-up outputs: fields, verdicts and words follow from them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.data import ImageDataset, Objects, Preprocessing
from optimizer.data.pixels import PixelSource
from optimizer.errors import DataError, UsageError
from optimizer.models import DetectorSpec
from optimizer.results import Gates, Hop
from optimizer.tasks import Classification, Detection, task_of
from optimizer.tasks.boxes import Detections
from optimizer.tasks.detection_classes import match_categories
from optimizer.tasks.detection_predictions import DetectionRecorder, read_detections
from optimizer.tasks.detection_tally import DetectionTally, changed_detections

SIZE, CLASSES, IMAGES = 64, ("cat", "dog"), 60
SPEC = DetectorSpec.of("retinanet", SIZE, 2)
PREPROCESSING = Preprocessing.detection(SIZE)
ALL = np.arange(IMAGES)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    """One or two objects an image, each exactly an anchor that no other overlaps."""
    objects = [_objects(index) for index in range(IMAGES)]
    pixels = np.zeros((IMAGES, SIZE, SIZE, 3), np.uint8)
    return ImageDataset(
        name="made up", classes=CLASSES, labels=np.zeros(IMAGES, np.int64),
        source=PixelSource(pixels, "made up"), positions=ALL, objects=tuple(objects),
    )  # fmt: skip


def _chosen(image: int) -> list[int]:
    """Anchors of the image's objects: squares of 32 pixels inside it."""
    anchors = SPEC.anchors()
    sides = anchors[:, 2:] - anchors[:, :2]
    square = (sides == 32).all(axis=1) & (anchors >= 0).all(axis=1) & (anchors <= SIZE).all(axis=1)
    inside = np.flatnonzero(square)
    return [int(inside[0]), int(inside[-1])][: 1 + image % 2]


def _objects(image: int) -> Objects:
    chosen = _chosen(image)
    return Objects.of_boxes((SIZE, SIZE), SPEC.anchors()[chosen], [image % 2] * len(chosen))


def outputs(score: float = 0.8, missing: tuple[int, ...] = (), noise: float = 0.0) -> np.ndarray:
    """Raw outputs that find the objects with this score, except in some images."""
    random = np.random.default_rng(0)
    raw = np.full((IMAGES, *SPEC.output_shape), -12, np.float32)
    raw[..., :4] = random.normal(0, noise, raw[..., :4].shape) if noise else 0
    for image in range(IMAGES):
        found = score * (1 - 0.002 * image) if image not in missing else 0.1
        for anchor in _chosen(image):
            raw[image, anchor, 4 + image % 2] = math.log(found / (1 - found))
    return raw


def measured(
    data: ImageDataset, *others: np.ndarray, gates: Gates | None = None
) -> tuple[Detection, dict[str, DetectionTally]]:
    """Tallies of the reference and the others, each the child of the one before."""
    task = Detection(SPEC, PREPROCESSING).for_gates(gates or Gates(max_drop_pp=1))
    names = ["reference", *(f"hop {n}" for n in range(len(others)))]
    read = [task.read(raw, data, ALL) for raw in (outputs(), *others)]
    tallies = {name: task.tally() for name in names}
    for index, name in enumerate(names):
        parent = read[index - 1] if index else None
        task.add(tallies[name], read[index], data, ALL, (read[0], parent))
    task.finish(tallies, dict(zip(names[1:], names, strict=False)), data)
    return task, tallies


def test_the_same_outputs_lose_nothing(data: ImageDataset) -> None:
    task, tallies = measured(data, outputs())
    reference = task.fields(tallies["reference"], data, is_reference=True)["detection"]
    assert reference.ap == pytest.approx(1)
    assert reference.detections == 90
    assert reference.by_class == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    assert reference.ap_large is None  # no object is that large
    fields = task.fields(tallies["hop 0"], data, is_reference=False)
    assert (fields["drop_pp"], fields["drop_ci95_pp"], fields["sqnr_db"]) == (0, (0, 0), None)
    assert fields["detection"].lost == fields["detection"].new == 0
    assert fields["detection"].lost_ci95[1] > 0.03
    assert fields["worst_image"] is None
    assert task.labels_informative(tallies["reference"], 2)
    for limit, verdict in ((None, "pass"), (0.05, "pass"), (0.01, "inconclusive")):
        gates = Gates(max_drop_pp=1, max_lost=limit)
        assert task.verdict(tallies["hop 0"], gates, labels_informative=True) == verdict
    needed = task.images_needed(tallies["hop 0"], Gates(max_drop_pp=1, max_lost=0.01))
    assert needed is not None
    assert needed > IMAGES


def test_lost_objects_are_counted_and_located(data: ImageDataset) -> None:
    lost = tuple(range(30))
    task, tallies = measured(data, outputs(noise=1e-3), outputs(missing=lost))
    gates = Gates(max_drop_pp=1)
    fields = task.fields(tallies["hop 1"], data, is_reference=False)
    found = fields["detection"]
    assert (found.lost, found.new, found.detections) == (45, 0, 45)
    assert found.lost_ci95[0] < 0.5 < found.lost_ci95[1]
    assert fields["drop_ci95_pp"][0] <= fields["drop_pp"] <= fields["drop_ci95_pp"][1]
    assert fields["worst_image"] == "made up/00001"  # the first with two lost
    assert task.verdict(tallies["hop 0"], gates, labels_informative=True) == "pass"
    assert task.changes(tallies["hop 0"], to_parent=True) == 0
    assert task.changes(tallies["hop 1"], to_parent=True) == 45
    only_lost = Gates(max_drop_pp=100, max_lost=0.1)
    assert task.verdict(tallies["hop 1"], only_lost, labels_informative=True) == "fail"
    hop = Hop(name="x", engine=None, executor="", parent=None, precision="int8", **fields)
    assert "45 of 90 detections above 0.3 lost, 0 new" in task.drop(hop)
    assert not task.exceeds_by_drop(hop, only_lost)
    assert task.limits(only_lost) == "the limits of 100 pp and 10 % lost detections"


def test_ap_hides_what_the_threshold_shows(data: ImageDataset) -> None:
    """All scores shrink: the order stays, and so does AP, but detections are lost."""
    task, tallies = measured(data, outputs(score=0.29))
    fields = task.fields(tallies["hop 0"], data, is_reference=False)
    assert fields["drop_pp"] == pytest.approx(0, abs=1e-9)
    assert fields["detection"].lost == 90
    assert fields["detection"].score_change is None
    _, tallies = measured(data, outputs(score=0.7))
    shrunk = task.fields(tallies["hop 0"], data, is_reference=False)["detection"]
    assert shrunk.lost == 0
    assert shrunk.score_change == pytest.approx(-0.1, abs=0.01)


def test_a_lower_threshold_keeps_what_has_a_lower_score(data: ImageDataset) -> None:
    gates = Gates(max_drop_pp=1, score_threshold=0.2)
    task, tallies = measured(data, outputs(score=0.29), gates=gates)
    found = task.fields(tallies["hop 0"], data, is_reference=False)["detection"]
    assert (found.lost, found.score_threshold) == (0, 0.2)


def test_parts_of_a_dataset_merge_to_the_whole(data: ImageDataset) -> None:
    task, tallies = measured(data, outputs(missing=(3, 8), noise=1e-2))
    raw = outputs(missing=(3, 8), noise=1e-2)
    parts = {name: [task.tally(), task.tally()] for name in tallies}
    for number in range(2):
        indices = ALL[number::2]
        read = {"reference": outputs()[indices], "hop 0": raw[indices]}
        predictions = {name: task.read(values, data, indices) for name, values in read.items()}
        for name, halves in parts.items():
            parent = None if name == "reference" else predictions["reference"]
            others = predictions["reference"], parent
            task.add(halves[number], predictions[name], data, indices, others)
    merged = {}
    for name, (first, second) in parts.items():
        first.merge(second)
        merged[name] = first
    task.finish(merged, {"hop 0": "reference"}, data)
    whole, joined = (
        task.fields(part["hop 0"], data, is_reference=False) for part in (tallies, merged)
    )
    assert whole["detection"] == joined["detection"].model_copy(
        update={"sqnr_scores_db": whole["detection"].sqnr_scores_db}
    )
    for name in ("drop_pp", "drop_ci95_pp", "worst_image", "max_abs_diff"):
        assert whole[name] == joined[name]
    assert whole["sqnr_db"] == pytest.approx(joined["sqnr_db"], abs=1e-9)


def test_without_detections_and_objects(data: ImageDataset) -> None:
    none = tuple(range(IMAGES))
    task, tallies = measured(data, outputs(missing=none))
    assert task.fields(tallies["hop 0"], data, is_reference=False)["detection"].ap == 1
    nothing = np.full_like(outputs(), -20)
    task, tallies = measured(data, nothing)
    found = task.fields(tallies["hop 0"], data, is_reference=False)["detection"]
    assert (found.ap, found.detections, found.lost, found.new_ci95) == (0, 0, 90, None)
    empty = [Objects.of_boxes((SIZE, SIZE), np.empty((0, 4), np.float32), ())] * IMAGES
    unlabelled = replace(data, objects=tuple(empty))
    task, tallies = measured(unlabelled, outputs())
    reference = task.fields(tallies["reference"], unlabelled, is_reference=True)["detection"]
    assert reference.ap is None
    assert not task.labels_informative(tallies["reference"], 2)


def test_changed_detections_are_matched_once() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)

    def found(boxes: np.ndarray, scores: list[float], classes: list[int]) -> Detections:
        return Detections(boxes, np.array(scores, np.float32), np.array(classes))

    twice = found(np.repeat(box, 2, 0), [0.9, 0.8], [0, 0])
    lost, new, change = changed_detections(twice, found(box, [0.7], [0]))
    assert (lost.sum(), new.sum()) == (1, 0)
    assert change == pytest.approx(-0.2)
    other_class = changed_detections(found(box, [0.9], [0]), found(box, [0.9], [1]))
    assert (other_class[0].tolist(), other_class[1].tolist()) == ([True], [True])
    moved = found(box + 1.3, [0.9], [0])  # IoU 0.61
    assert changed_detections(found(box, [0.9], [0]), moved)[0].tolist() == [True]


def test_records_come_back_in_dataset_order(data: ImageDataset, tmp_path: Path) -> None:
    task, _ = measured(data)
    recorders = [DetectionRecorder(), DetectionRecorder()]
    for number, recorder in enumerate(recorders):
        indices = ALL[1 - number :: 2]
        recorder.start_batch(indices)
        recorder.add("reference", task.read(outputs()[indices], data, indices))
    recorders[0].add("failed", task.read(outputs()[ALL[1::2]], data, ALL[1::2]))
    recorders[0].merge(recorders[1])
    recorders[0].write(tmp_path / "p.npz", data, "digest")
    stored = read_detections(tmp_path / "p.npz")
    assert list(stored) == ["reference"]  # the other failed in one of the processes
    assert list(stored["reference"]) == [data.image_id(index) for index in range(IMAGES)]
    whole = task.read(outputs(), data, ALL).detections
    for found, expected in zip(stored["reference"].values(), whole, strict=True):
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.classes, expected.classes)


def test_stored_predictions_come_back(data: ImageDataset) -> None:
    task, _ = measured(data)
    parts = [task.read(outputs()[part], data, part) for part in (ALL[:20], ALL[20:])]
    arrays = task.pack(parts)
    assert {len(values) for values in arrays.values()} == {IMAGES}
    whole, back = task.read(outputs(), data, ALL), task.unpack(arrays)
    np.testing.assert_array_equal(back.outputs, whole.outputs)
    for found, expected in zip(back.detections, whole.detections, strict=True):
        for name in ("boxes", "scores", "classes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_hop_may_see_a_sample_of_the_images(data: ImageDataset) -> None:
    """It is compared with the reference on those images only."""
    blind = outputs()
    blind[:2, :, 4:] = -20
    task, tallies = measured(data, outputs(), blind)
    sample, read = ALL[:10], task.read
    tallies["hop 0"] = task.tally()
    reference = read(outputs()[sample], data, sample)
    task.add(tallies["hop 0"], reference, data, sample, (reference, reference))
    task.finish(tallies, {"hop 0": "reference", "hop 1": "hop 0"}, data)
    fields = task.fields(tallies["hop 0"], data, is_reference=False)
    assert (fields["n"], fields["drop_pp"], fields["n_vs_parent"]) == (10, 0, None)
    assert task.fields(tallies["hop 1"], data, is_reference=False)["drop_pp"] > 0
    assert task.net_loss(tallies["hop 1"], to_parent=True) == 0  # other images: no comparison
    assert task.running(tallies["hop 1"]) == "3 of 90 detections lost"
    with pytest.raises(UsageError, match="until-decided"):
        task.stopping_early()


def test_categories_match_by_name_or_by_number(data: ImageDataset) -> None:
    assert data.objects is not None
    coco = (*(f"class {n}" for n in range(7)), "dog", "cat")
    by_name = match_categories(data, 9, coco)
    assert by_name.objects is not None
    assert {int(c) for o in by_name.objects for c in o.classes} == {7, 8}
    assert by_name.classes == coco
    assert match_categories(data, 2, None) is data
    numbered = replace(data, category_ids=(3, 5))
    by_number = match_categories(numbered, 6, None)
    assert by_number.objects is not None
    assert {int(c) for o in by_number.objects for c in o.classes} == {3, 5}
    with pytest.raises(DataError, match="2 categories, but the network has 6 classes"):
        match_categories(data, 6, None)
    with pytest.raises(DataError, match="'cat', which the network does not have"):
        match_categories(data, 2, ("dog", "cow"))
    with pytest.raises(DataError, match="ambiguous"):
        match_categories(data, 3, ("dog", "cat", "cat"))


def test_each_task_refuses_the_limits_and_data_of_the_other(data: ImageDataset) -> None:
    detection = task_of(SPEC, PREPROCESSING)
    classification = task_of(None, PREPROCESSING)
    assert (detection.name, classification.name) == ("detection", "classification")
    with pytest.raises(UsageError, match="max-flips"):
        detection.for_gates(Gates(max_drop_pp=1, max_flips=0.1))
    with pytest.raises(UsageError, match="max-lost"):
        Classification().for_gates(Gates(max_drop_pp=1, max_lost=0.1))
    with pytest.raises(DataError, match="the network is a detector"):
        detection.match(replace(data, objects=None), 2, None)
    with pytest.raises(DataError, match="the network is a classifier"):
        classification.match(data, 2, None)
