from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import CheckpointError, DataError
from optimizer.models import Model, load_model, save_checkpoint


@pytest.mark.parametrize("name", ["nothing", "resnet", "vgg16:DEFAULT", ""])
def test_unknown_names_are_rejected_with_the_accepted_forms(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"unknown model .*resnet50:IMAGENET1K_V2.*random"):
        load_model(name)


def test_missing_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file: .*model\.safetensors"):
        load_model(tmp_path / "model.safetensors")


def test_folders_and_other_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        load_model(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_model(tmp_path / "model.onnx")


def test_an_architecture_without_weights_is_rejected() -> None:
    with pytest.raises(CheckpointError, match=r"does not say which weights.*resnet50:random"):
        load_model("resnet50")


@pytest.mark.parametrize("count", ["ten", "1", "-3", "1000000", ""])
def test_invalid_numbers_of_classes_are_rejected(count: str) -> None:
    with pytest.raises(CheckpointError, match="is not a valid number of classes"):
        load_model(f"resnet18:random:{count}")


def test_the_image_size_scales_the_resize(resnet18: Model, tmp_path: Path) -> None:
    path = save_checkpoint(resnet18, tmp_path / "model.safetensors", details={}).path
    assert load_model(path).image_size == 32
    larger = load_model(path, image_size=64)
    assert (larger.preprocessing.resize, larger.image_size) == (74, 64)
    assert larger.sha256 == resnet18.sha256
    with pytest.raises(DataError, match="crop must be"):
        load_model(path, image_size=0)


def test_a_name_and_an_architecture_must_agree() -> None:
    with pytest.raises(CheckpointError, match="is a resnet18, not a resnet50"):
        load_model("resnet18:random:10", arch="resnet50")
    with pytest.raises(CheckpointError, match="unknown architecture 'alexnet'"):
        load_model("resnet18:random:10", arch="alexnet")
