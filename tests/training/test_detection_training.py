"""Training a detector on a few scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import optimizer
from optimizer.data import ImageDataset, Objects, Preprocessing, open_dataset
from optimizer.errors import DataError, UsageError
from optimizer.models import Model, build_module, load_model, weights_digest
from optimizer.options import TrainOptions
from optimizer.training.detection_training import (
    DetectorSettings,
    _initial_network,
    _optimizer,
    _Scenes,
    detection_options,
    train_detector,
)

ARCH = "retinanet_resnet18_fpn"


@pytest.fixture(scope="module")
def scenes() -> ImageDataset:
    return open_dataset("digits-scenes:train", limit=16)


def _options(**values: object) -> DetectorSettings:
    given = {"arch": ARCH, "image_size": 64, "epochs": 1, "batch_size": 4, **values}
    return detection_options(TrainOptions(**given))  # type: ignore[arg-type]


@pytest.mark.long
def test_the_loss_falls_and_the_result_is_reproducible(scenes: ImageDataset) -> None:
    model, losses = train_detector(_options(epochs=3), scenes)
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    assert model.detector is not None
    assert model.detector.num_classes == 10
    assert not model.module.training
    short = [train_detector(_options(), scenes.select(np.arange(8)))[0].sha256 for _ in range(2)]
    assert short[0] == short[1]


@pytest.mark.long
def test_the_verb_trains_measures_and_stores(tmp_path: Path) -> None:
    """On an own COCO file, so that the data option is used too."""
    import json

    from PIL import Image

    scenes = open_dataset("digits-scenes:train", limit=4)
    (batch,) = scenes.batches(4, Preprocessing(resize=None, crop=128), as_uint8=True)
    (tmp_path / "images").mkdir()
    assert scenes.objects is not None
    annotations = []
    for number, (pixels, objects) in enumerate(zip(batch.images, scenes.objects, strict=True)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        for (left, top, right, bottom), label in zip(objects.boxes, objects.classes, strict=True):
            box = [float(left), float(top), float(right - left), float(bottom - top)]
            annotations.append({"image_id": number, "category_id": int(label), "bbox": box})
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(4)],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in range(10)],
    }
    data = tmp_path / "train.json"
    data.write_text(json.dumps(content))
    result = optimizer.train(
        tmp_path / "d.safetensors",
        arch="fcos_resnet18_fpn",
        data=str(data),
        val=str(data),
        image_folder=tmp_path / "images",
        image_size=64,
        epochs=1,
        batch_size=2,
        workers=0,
    )
    assert result.ap is not None
    assert 0 <= result.ap <= result.ap50 <= 1
    loaded = load_model(tmp_path / "d.safetensors")
    assert (loaded.arch, loaded.classes) == ("fcos_resnet18_fpn", tuple("0123456789"))
    assert loaded.preprocessing == Preprocessing.detection(64)


def test_defaults_of_detectors_replace_those_that_were_not_given() -> None:
    options = detection_options(TrainOptions(arch=ARCH, lr=0.5))
    assert (options.lr, options.image_size, options.batch_size) == (0.5, 128, 16)
    for wrong, message in (
        ({"image_size": 32}, "too small"),
        ({"label_smoothing": 0.1}, "is for classifiers"),
    ):
        with pytest.raises(UsageError, match=message):
            detection_options(TrainOptions(arch=ARCH, **wrong))  # type: ignore[arg-type]


def test_a_value_that_was_given_counts_even_if_it_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images of 32 pixels are too small"):
        optimizer.train(tmp_path / "d.safetensors", TrainOptions(arch=ARCH, image_size=32))


def test_boxes_move_with_the_image(scenes: ImageDataset) -> None:
    """A white square on black stays where its box is, whatever the placement."""
    pixels = np.zeros((1, 96, 128, 3), np.uint8)
    pixels[0, 30:60, 40:90] = 255
    from optimizer.data.pixels import PixelSource

    boxes = np.array([[40, 30, 90, 60]], np.float32)
    data = replace(
        scenes.select(np.zeros(8, np.int64)),
        source=PixelSource(pixels, "square"),
        positions=np.zeros(8, np.int64),
        objects=(Objects.of_boxes((128, 96), boxes, [3]),) * 8,
    )
    letterbox = replace(Preprocessing.detection(64), mean=(0.0,) * 3, std=(1.0,) * 3)
    (batch,) = _Scenes(data, letterbox, _options(batch_size=8)).epoch()
    places = set()
    for image, target in zip(*batch, strict=True):
        left, top, right, bottom = target["boxes"][0].numpy()
        bright = image[0] > 0.4
        columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(found, [left, top, right, bottom], atol=1.1)
        places.add((round(float(left)), round(float(top))))
        assert target["labels"].tolist() == [3]
    assert len(places) > 4


def test_a_classifier_becomes_the_backbone_and_learns_slowly() -> None:
    torch.manual_seed(0)
    module = build_module("resnet18", 10).eval()
    classifier = Model(
        module=module, arch="resnet18", classes=None, num_classes=10,
        preprocessing=Preprocessing.digits(32), source="c", sha256=weights_digest(module.state_dict()),
    )  # fmt: skip
    network = _initial_network(ARCH, 10, classifier, tuple("0123456789"))
    assert torch.equal(network.get_submodule("backbone.body.conv1").weight, module.conv1.weight)  # type: ignore[arg-type]
    towers = network.get_submodule("head.classification_head.conv")
    deviations = [m.weight.std() for m in towers.modules() if isinstance(m, nn.Conv2d)]
    assert min(deviations) > 0.02  # torchvision's own is 0.01
    rates = {group["lr"] for group in _optimizer(network, _options(lr=0.1)).param_groups}
    assert sorted(rates) == pytest.approx([0.03, 0.1])
    other = replace(classifier, arch="resnet50")
    with pytest.raises(UsageError, match="neither retinanet_resnet18_fpn nor its backbone"):
        _initial_network(ARCH, 10, other, ())


def test_data_without_objects_is_refused(scenes: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a detector learns from boxes"):
        optimizer.train(tmp_path / "d.safetensors", arch=ARCH, data="digits:train")
    with pytest.raises(UsageError, match="main job is for classifiers"):
        optimizer.run({"train": {"arch": ARCH}}, tmp_path / "run")
