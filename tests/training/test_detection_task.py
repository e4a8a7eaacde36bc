"""Training a detector on a few scenes, by the loop that trains classifiers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import optimizer
from optimizer.data import ImageDataset, Objects, Preprocessing, open_dataset
from optimizer.data.pixels import PixelSource
from optimizer.errors import CheckpointError, DataError, UsageError
from optimizer.models import Model, build_module, load_model, weights_digest
from optimizer.options import TrainOptions
from optimizer.progress import Silent
from optimizer.training import train, train_checkpoint
from optimizer.training.distribution import World
from optimizer.training.loop import Fit, Work
from optimizer.training.object_placement import PlacedReading
from optimizer.training.trainer import _new_fit
from optimizer.training.training_images import TrainingImages
from optimizer.training.training_job import TrainingJob, prepare
from optimizer.training.training_state import StateFile

ARCH = "retinanet_resnet18_fpn"
SMALL: dict[str, Any] = {"arch": ARCH, "image_size": 64, "epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def scenes() -> ImageDataset:
    return open_dataset("digits-scenes:train", limit=16)


def job_of(data: ImageDataset, init: Model | None = None, **options: Any) -> TrainingJob:
    return prepare(TrainOptions.parse({**SMALL, **options}), data, None, init)


def fit_of(job: TrainingJob, folder: Path | None = None) -> Fit:
    torch.manual_seed(job.settings.seed)
    cpu = torch.device("cpu")
    work = Work(settings=job.settings, world=World(), device=cpu, progress=Silent(), folder=folder)
    return _new_fit(job, work)[0]


@pytest.fixture(scope="module")
def classifier() -> Model:
    torch.manual_seed(0)
    module = build_module("resnet18", 10).eval()
    return Model(
        module=module, arch="resnet18", classes=None, num_classes=10,
        preprocessing=Preprocessing.digits(32), source="c", sha256=weights_digest(module.state_dict()),
    )  # fmt: skip


@pytest.mark.long
def test_the_loss_falls(scenes: ImageDataset) -> None:
    trained = train(scenes, TrainOptions.parse({**SMALL, "epochs": 3}), held_out=scenes)
    assert len(trained.losses) == 3
    assert trained.losses[-1] < 0.8 * trained.losses[0]
    assert trained.model.detector is not None
    assert trained.model.detector.num_classes == 10
    assert not trained.model.module.training
    assert trained.metrics.keys() == {"ap", "ap50"}


def test_a_detector_continues_bit_for_bit(scenes: ImageDataset, tmp_path: Path) -> None:
    """From a checkpoint in a file, in the middle of an epoch, with averaged weights."""
    job = job_of(scenes.select(np.arange(4)), batch_size=2, ema=0.9)
    whole = fit_of(job, tmp_path)
    digests = []
    for step, batches in enumerate(whole._batches.stream(0, 2)):
        whole.run_step(batches)
        if step == 0:
            whole._save()
        digests.append(weights_digest(whole.result.state_dict()))
    again = fit_of(job_of(scenes.select(np.arange(4)), batch_size=2, ema=0.9))
    again.restore(StateFile(tmp_path).load())
    for batches in again._batches.stream(again.step, 2):
        again.run_step(batches)
        assert weights_digest(again.result.state_dict()) == digests[again.step - 1]
    assert again.step == len(set(digests)) == 2


ONE_STEP = """
import sys
import torch
from optimizer.data import open_dataset
from optimizer.options import TrainOptions
from optimizer.progress import Silent
from optimizer.training.distribution import joined
from optimizer.training.loop import Work
from optimizer.training.trainer import _new_fit
from optimizer.training.training_job import prepare

torch.set_num_threads(1)
scenes = open_dataset("digits-scenes:train", limit=8)
options = TrainOptions(arch="retinanet_resnet18_fpn", image_size=64, epochs=1, weight_decay=0,
                       clip_grad=0, backbone_rate=1, batch_size=int(sys.argv[2]))
cpu = torch.device("cpu")
with joined(cpu) as world:
    torch.manual_seed(0)
    work = Work(settings=(job := prepare(options, scenes, scenes, None)).settings, world=world,
                device=cpu, progress=Silent())
    fit, _ = _new_fit(job, work)
    fit._module.eval()
    fit.run_step(next(fit._batches.stream(0, 1)))
    states = fit.state()["optimizer"]["state"]
    metrics = fit.task.evaluate(fit.result.eval(), world)
    if world.first:
        gradients = torch.cat([states[i]["momentum_buffer"].flatten() for i in sorted(states)])
        torch.save({"gradients": gradients, "metrics": dict(metrics)}, sys.argv[1])
"""


@pytest.mark.long
def test_two_processes_make_the_step_of_one(tmp_path: Path) -> None:
    """BatchNorm is frozen, because its statistics are those of a process's own images.

    Losses are divided by the objects of a process's images, so the processes' mean differs from the
    loss of one process where these numbers differ.
    """
    script = tmp_path / "one_step.py"
    script.write_text(ONE_STEP)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    results = {}
    for name, launcher, batch in (("one", [], "4"), ("two", torchrun, "2")):
        command = [sys.executable, *launcher, str(script), str(tmp_path / name), batch]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        results[name] = torch.load(tmp_path / name, weights_only=True)
    one, two = (results[name]["gradients"].double() for name in ("one", "two"))
    assert one.norm() > 0.1
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.9
    assert results["one"]["metrics"].keys() == results["two"]["metrics"].keys() == {"ap", "ap50"}


def coco_file(folder: Path) -> Path:
    """Four scenes as PNG files with a COCO file."""
    from PIL import Image

    scenes = open_dataset("digits-scenes:train", limit=4)
    (batch,) = scenes.batches(4, Preprocessing(resize=None, crop=128), as_uint8=True)
    (folder / "images").mkdir()
    assert scenes.objects is not None
    annotations = []
    for number, (pixels, objects) in enumerate(zip(batch.images, scenes.objects, strict=True)):
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        for (left, top, right, bottom), label in zip(objects.boxes, objects.classes, strict=True):
            box = [float(left), float(top), float(right - left), float(bottom - top)]
            annotations.append({"image_id": number, "category_id": int(label), "bbox": box})
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(4)],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in range(10)],
    }
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.long
def test_the_verb_trains_measures_and_stores(tmp_path: Path) -> None:
    """On an own COCO file with decoding in other processes, under a detector's name."""
    data = coco_file(tmp_path)
    output = tmp_path / "fcos_resnet18_fpn.safetensors"
    result = optimizer.train(
        output, data=str(data), val=str(data), image_folder=tmp_path / "images", image_size=64,
        epochs=1, batch_size=2, workers=1,
    )  # fmt: skip
    assert result.ap is not None
    assert result.ap50 is not None
    assert 0 <= result.ap <= result.ap50 <= 1
    loaded = load_model(output)
    assert (loaded.arch, loaded.classes) == ("fcos_resnet18_fpn", tuple("0123456789"))
    assert loaded.preprocessing == Preprocessing.detection(64)
    assert "4 of 4 images" in result.notes[0]
    assert "ap50" in (tmp_path / "fcos_resnet18_fpn.training" / "history.csv").read_text()
    history = result.manifest.details["history"]
    assert [row["ap"] for row in history] == [result.ap]


def test_defaults_of_detectors_replace_those_that_were_not_given(scenes: ImageDataset) -> None:
    options = prepare(TrainOptions(arch=ARCH, lr=0.5), scenes, None, None).settings
    assert (options.lr, options.image_size, options.batch_size) == (0.5, 128, 16)
    assert (options.backbone_rate, options.clip_grad, options.recipe) == (0.3, 5, "detection")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 32}, "images of 32 pixels are too small"),
        ({"label_smoothing": 0.1}, "--label-smoothing is for classifiers"),
        ({"hidden_layers": 1}, "--hidden-layers is for classifiers"),
        ({"recipe": "tv-v2"}, "--label-smoothing is for classifiers"),
        ({"augment": "trivial"}, "does not move boxes"),
    ],
)
def test_options_that_detectors_do_not_use_are_refused(
    scenes: ImageDataset, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        job_of(scenes, **wrong)


def test_a_value_that_was_given_counts_even_if_it_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images of 32 pixels are too small"):
        optimizer.train(tmp_path / "d.safetensors", TrainOptions(arch=ARCH, image_size=32))


@pytest.mark.parametrize("augment", ["shift", "none"])
def test_boxes_move_with_the_image(scenes: ImageDataset, augment: str) -> None:
    """A white square on black stays where its box is, whatever the placement."""
    pixels = np.zeros((1, 96, 128, 3), np.uint8)
    pixels[0, 30:60, 40:90] = 255
    boxes = np.array([[40, 30, 90, 60]], np.float32)
    data = replace(
        scenes.select(np.zeros(8, np.int64)),
        source=PixelSource(pixels, "square"),
        positions=np.zeros(8, np.int64),
        objects=(Objects.of_boxes((128, 96), boxes, [3]),) * 8,
    )
    letterbox = replace(Preprocessing.detection(64), mean=(0.0,) * 3, std=(1.0,) * 3)
    settings = job_of(scenes, batch_size=8, augment=augment).settings
    reading = PlacedReading(data, letterbox, moving=augment == "shift")
    images = TrainingImages(data, letterbox, settings, World(), reading)
    ((batch,),) = images.stream(0, 1)
    places = set()
    for image, (box,), labels in zip(batch.images, batch.boxes, batch.labels, strict=True):
        left, top, right, bottom = box
        bright = image[0] > 0.4
        columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(found, [left, top, right, bottom], atol=1.1)
        places.add((round(float(left)), round(float(top))))
        assert labels.tolist() == [3]
    assert (len(places) > 4) if augment == "shift" else (places == {(20, 15)})


def test_a_classifier_becomes_the_backbone_and_learns_slowly(
    scenes: ImageDataset, classifier: Model
) -> None:
    fit = fit_of(job_of(scenes, init=classifier, lr=0.1))
    network = fit.result
    stem = network.get_submodule("backbone.body.conv1").weight
    assert torch.equal(stem, classifier.module.get_parameter("conv1.weight"))  # type: ignore[arg-type]
    towers = network.get_submodule("head.classification_head.conv")
    deviations = [m.weight.std() for m in towers.modules() if isinstance(m, nn.Conv2d)]
    assert min(deviations) > 0.02  # torchvision's own is 0.01
    peaks = [group["share"] * 0.1 for group in fit._optimizer.param_groups]
    assert peaks == pytest.approx([0.1, 0.1, 0.03, 0.03])  # the head's, which is reported, first
    frozen = fit_of(job_of(scenes, init=classifier, freeze_backbone=True)).result
    assert not frozen.get_parameter("backbone.body.conv1.weight").requires_grad
    assert frozen.get_parameter("backbone.fpn.inner_blocks.0.0.weight").requires_grad
    other = replace(classifier, arch="resnet50")
    with pytest.raises(CheckpointError, match="neither retinanet_resnet18_fpn nor its backbone"):
        job_of(scenes, init=other)


def test_other_classes_keep_all_but_the_class_layers(scenes: ImageDataset) -> None:
    first = fit_of(job_of(scenes))
    init = Model(
        module=first.result, arch=ARCH, classes=tuple("abcdefghij"), num_classes=10,
        preprocessing=Preprocessing.detection(96), source="d", sha256="d",
    )  # fmt: skip
    job = job_of(scenes, init=init, arch=None, image_size=None)
    assert job.preprocessing == init.preprocessing  # at the size of the detector
    assert "has other classes" in job.notes[-1]
    network = fit_of(replace(job, settings=TrainOptions.of(job.settings, {"seed": 5}))).result
    for name, same in (
        ("head.regression_head.bbox_reg.weight", True),
        ("head.classification_head.cls_logits.weight", False),
    ):
        assert torch.equal(network.get_parameter(name), first.result.get_parameter(name)) is same


def test_data_without_objects_is_refused(scenes: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a detector learns from boxes"):
        optimizer.train(tmp_path / "d.safetensors", arch=ARCH, data="digits:train")
    empty = replace(scenes, objects=(Objects.of_boxes((128, 128), np.empty((0, 4)), []),) * 16)
    with pytest.raises(DataError, match="has an object"):
        train_checkpoint(TrainOptions(arch=ARCH), empty, tmp_path / "d.safetensors")
