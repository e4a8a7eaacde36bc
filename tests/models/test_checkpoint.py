from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.artifacts import load_artifact, manifest_path
from optimizer.data import Preprocessing
from optimizer.errors import ArtifactError, CheckpointError
from optimizer.models import Model, load_model, save_checkpoint
from tests.manifests import edit_manifest

CLASSES = tuple("abcdefghij")


@pytest.fixture
def named(resnet18: Model) -> Model:
    return replace(
        resnet18,
        classes=CLASSES,
        preprocessing=Preprocessing.digits(32),
        preprocessing_assumed=False,
    )


@pytest.fixture
def path(named: Model, tmp_path: Path) -> Path:
    return save_checkpoint(named, tmp_path / "model.safetensors", details={"top1": 0.9}).path


def assert_equal_models(actual: Model, expected: Model) -> None:
    assert actual.sha256 == expected.sha256
    assert (actual.arch, actual.num_classes) == (expected.arch, expected.num_classes)
    assert actual.classes == expected.classes
    assert actual.preprocessing == expected.preprocessing
    assert actual.preprocessing_assumed == expected.preprocessing_assumed
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(actual.module(images), expected.module(images))


def test_checkpoints_round_trip(named: Model, path: Path) -> None:
    assert_equal_models(load_model(path), named)
    manifest = load_artifact(path, kind="checkpoint").manifest
    assert manifest.settings["arch"] == "resnet18"
    assert manifest.settings["num_classes"] == 10
    assert manifest.classes == list(CLASSES)
    assert manifest.preprocessing == named.preprocessing.to_dict()
    assert manifest.details == {"top1": 0.9}


def test_the_header_replaces_a_missing_manifest(named: Model, path: Path) -> None:
    manifest_path(path).unlink()
    assert_equal_models(load_model(path), named)


def test_an_assumed_preprocessing_stays_assumed(resnet18: Model, tmp_path: Path) -> None:
    path = save_checkpoint(resnet18, tmp_path / "model.safetensors", details={}).path
    assert load_model(path).preprocessing_assumed
    manifest_path(path).unlink()
    model = load_model(path)
    assert model.preprocessing_assumed
    assert model.preprocessing == Preprocessing.imagenet()


def test_third_party_files_get_the_standard_preprocessing(named: Model, tmp_path: Path) -> None:
    save_file(named.module.state_dict(), tmp_path / "bare.safetensors")
    model = load_model(tmp_path / "bare.safetensors")
    assert model.preprocessing == Preprocessing(resize=256, crop=224)
    assert model.preprocessing_assumed
    assert model.classes is None


def test_a_card_file_for_third_party_weights(named: Model, tmp_path: Path) -> None:
    """Missing fields come from the standard preprocessing, scaled to the given size."""
    weights, card = tmp_path / "weights.pth", tmp_path / "weights.pth.card.json"
    torch.save(named.module.state_dict(), weights)
    names = [f"class {number}" for number in range(named.num_classes)]
    card.write_text(
        json.dumps({
            "classes": names,
            "preprocessing": {"mean": [0.5, 0.4, 0.3], "crop": 112, "color": "bgr"},
        })
    )  # fmt: skip
    model = load_model(weights)
    assert model.classes == tuple(names)
    assert model.preprocessing == replace(
        Preprocessing.imagenet(112), mean=(0.5, 0.4, 0.3), color="BGR"
    )
    assert (model.preprocessing.resize, model.preprocessing_assumed) == (128, False)
    assert model.source == "weights.pth with weights.pth.card.json"
    card.write_text(json.dumps({"classes": names}))
    assert load_model(weights).preprocessing_assumed


def test_a_card_file_overrides_the_embedded_card_field_by_field(path: Path) -> None:
    manifest_path(path).unlink()
    card = path.with_name(path.name + ".card.json")
    names = [f"class {letter}" for letter in CLASSES]
    card.write_text(json.dumps({"classes": names}))
    model = load_model(path)
    assert (model.classes, model.preprocessing) == (tuple(names), Preprocessing.digits(32))
    assert not model.preprocessing_assumed
    card.write_text('{"preprocessing": {"resize": null}}')
    model = load_model(path)
    assert (model.classes, model.preprocessing.resize) == (CLASSES, None)
    assert model.preprocessing.mean == Preprocessing.digits(32).mean


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "an object"),
        ('{"mean": [0.5]}', "mean: Extra inputs"),
        ('{"preprocessing": {"mean": [0.5]}}', "mean has 1 values and std 3|std of grayscale"),
        ('{"preprocessing": [0.5]}', "preprocessing: Input should be"),
        ('{"preprocessing": {"antialias": "false"}}', "antialias: Input should be a valid bool"),
        ('{"preprocessing": {"mean": "123"}}', "mean: Input should be a valid (list|array)"),
        ('{"preprocessing": {"crop": 1e999}}', "crop: Input should be a valid int"),
        ('{"preprocessing": {"resize": 256.5}}', "resize: Input should be a valid int"),
        ('{"preprocessing": {"crop": 0}}', "crop must be 1"),
        ('{"preprocessing": {"mean": [127.5, 127.5, 127.5]}}', "must be from 0 to 1"),
        ('{"preprocessing": {"colour": "BGR"}}', "preprocessing.colour: Extra inputs"),
        ('{"classes": "cat"}', "classes: Input should be a valid"),
        ('{"classes": ["cat"]}', "names 1 classes, but its weights have"),
        ('{"arch": "resnet7"}', "unknown architecture"),
    ],
)
def test_a_card_that_cannot_be_used_is_named(
    named: Model, text: str, message: str, tmp_path: Path
) -> None:
    torch.save(named.module.state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.pth.card.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "w.pth")


def test_a_card_file_next_to_a_manifest_is_rejected(path: Path) -> None:
    card = path.with_name(path.name + ".card.json")
    card.write_text("{}")
    with pytest.raises(CheckpointError, match="both a manifest and a card file"):
        load_model(path)
    card.unlink()


def test_a_changed_file_is_rejected(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="changed"):
        load_model(path)


def test_another_kind_of_artifact_is_rejected(path: Path) -> None:
    edit_manifest(path, kind="statistics")
    with pytest.raises(ArtifactError, match="is a statistics, not a checkpoint"):
        load_model(path)


def test_the_card_and_the_caller_must_agree(path: Path) -> None:
    assert load_model(path, arch="resnet18").arch == "resnet18"
    with pytest.raises(CheckpointError, match="is a resnet18, not a resnet50"):
        load_model(path, arch="resnet50")


def test_damaged_cards_are_rejected(path: Path, tmp_path: Path) -> None:
    tensors = load_file(path)
    for card in ("{", "[]", '{"arch": "resnet18"}', '{"arch": "resnet18", "classes": 3}'):
        other = tmp_path / "other.safetensors"
        save_file(tensors, other, metadata={"resnet-opt": card})
        with pytest.raises(CheckpointError, match="card"):
            load_model(other)
    few = json.dumps({"arch": "resnet18", "classes": ["a", "b"]})
    save_file(tensors, tmp_path / "few.safetensors", metadata={"resnet-opt": few})
    with pytest.raises(CheckpointError, match="names 2 classes, but its weights have 10"):
        load_model(tmp_path / "few.safetensors")


def test_equal_models_make_equal_files(named: Model, path: Path, tmp_path: Path) -> None:
    again = save_checkpoint(named, tmp_path / "again.safetensors", details={})
    assert again.path.read_bytes() == path.read_bytes()


def test_only_safetensors_are_written(named: Model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"name it model\.safetensors"):
        save_checkpoint(named, tmp_path / "model.pth", details={})
    assert not list(tmp_path.iterdir())
