"""Networks for images of one and of four channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from optimizer.data import ImageDataset, Preprocessing, open_dataset
from optimizer.errors import CheckpointError, DataError, UsageError
from optimizer.exporting import export_onnx
from optimizer.graphs.facts import graph_facts
from optimizer.models import build_module, load_model
from optimizer.models.architectures import adapt_stem
from optimizer.options import TrainOptions
from optimizer.training import train, train_checkpoint
from optimizer.training.image_augmentation import randomized
from optimizer.training.training_job import prepare

SMALL: dict[str, Any] = {"arch": "resnet18", "image_size": 8, "epochs": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def few() -> ImageDataset:
    return open_dataset("digits:train", limit=16)


@pytest.fixture
def rgba_folder(tmp_path: Path) -> Path:
    random = np.random.RandomState(0)
    for name, level in (("bright", 200), ("dark", 30)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.randint(level - 20, level + 20, (10, 12, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def test_a_network_for_gray_images(few: ImageDataset, tmp_path: Path) -> None:
    path = tmp_path / "gray.safetensors"
    train_checkpoint(TrainOptions(**SMALL, channels=1), few, path, held_out=few)
    model = load_model(path)
    assert model.preprocessing.color == "grayscale"
    assert model.channels == 1
    assert model.module.get_parameter("conv1.weight").shape[1] == 1


@pytest.mark.long
@pytest.mark.parametrize("channels", [1, 4])
def test_such_networks_are_exported(rgba_folder: Path, tmp_path: Path, channels: int) -> None:
    options = TrainOptions(**SMALL, channels=channels)
    model = train(open_dataset(str(rgba_folder)), options).model
    export_onnx(model, tmp_path / "model.onnx")
    facts = graph_facts(tmp_path / "model.onnx")
    assert facts.input_shape[1] == channels
    assert facts.preprocessing == model.preprocessing.to_dict()


def test_a_network_for_four_channels(rgba_folder: Path) -> None:
    data = open_dataset(str(rgba_folder))
    trained = train(data, TrainOptions(**SMALL, channels=4), held_out=data)
    assert trained.model.preprocessing.color == "RGBA"
    assert trained.top1 is not None
    with pytest.raises(UsageError, match="--augment rand changes colours"):
        train(data, TrainOptions(**SMALL, channels=4, augment="rand"))


def test_images_without_a_fourth_channel_are_refused(few: ImageDataset, rgba_folder: Path) -> None:
    with pytest.raises(DataError, match="have 3 channels, but the network takes 4"):
        train(few, TrainOptions(**SMALL, channels=4))
    Image.new("RGB", (12, 10)).save(rgba_folder / "dark" / "3.png")
    with pytest.raises(DataError, match=r"3\.png: it has 3 channels .*the network takes four"):
        train(open_dataset(str(rgba_folder)), TrainOptions(**SMALL, channels=4))


def test_random_crops_leave_the_channels_alone() -> None:
    """Pillow would weight the colours by the fourth channel."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0], pixels[::2, :, 3] = 80, 255
    change = randomized(
        Preprocessing.imagenet(8).with_channels(4),
        {"augment": "crop", "flip": True, "erasing": 0.0},
    )
    result = change(Image.fromarray(pixels), 3)
    assert result.shape == (8, 8, 4)
    assert (result[..., 0] == 80).all()
    gray = randomized(
        Preprocessing.imagenet(8).with_channels(1),
        {"augment": "trivial", "flip": True, "erasing": 1.0},
    )
    assert gray(Image.new("RGB", (16, 16), (9, 9, 9)), 3).shape == (8, 8, 1)


def test_trained_weights_are_adapted(few: ImageDataset) -> None:
    init = load_model("resnet18:random:10", image_size=8)
    job = prepare(TrainOptions(**SMALL, channels=1), few, None, init)
    assert "takes images of 3 channels: its first layer is adapted to 1" in job.notes[-1]
    assert job.preprocessing.color == "grayscale"
    gray = replace(init, preprocessing=job.preprocessing)
    assert prepare(TrainOptions(**SMALL), few, None, gray).settings.channels == 1
    with pytest.raises(CheckpointError, match="takes images of 1 channels, not 3"):
        prepare(TrainOptions(**SMALL, channels=3), few, None, gray)


@pytest.mark.parametrize("channels", [1, 4])
def test_equal_channels_have_the_response_they_had(channels: int) -> None:
    module = build_module("resnet18", 2).eval()
    gray = torch.rand(2, 1, 16, 16)
    with torch.inference_mode():
        before = module.get_submodule("conv1")(gray.expand(-1, 3, -1, -1))
        # One channel replaces all three; of four, the last repeats the first.
        adapt_stem(module, channels)
        after = module.get_submodule("conv1")(gray.expand(-1, channels, -1, -1))
    if channels == 1:
        torch.testing.assert_close(after, before)
    else:
        kernel = module.get_parameter("conv1.weight")
        assert torch.equal(kernel[:, 3], kernel[:, 0])
        assert 0.5 < float(after.norm() / before.norm()) < 1.5


@pytest.mark.parametrize("channels", [2, "five"])
def test_other_numbers_are_refused(channels: object) -> None:
    with pytest.raises(UsageError, match=f"{channels} input channels are not supported"):
        TrainOptions.parse({"channels": channels})
