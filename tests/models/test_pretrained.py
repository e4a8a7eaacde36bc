from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.data import Preprocessing
from optimizer.errors import CheckpointError, EnvironmentFault, MissingLibrary
from optimizer.models import ARCHITECTURES, Model, load_model, pretrained
from optimizer.models.pretrained import torchvision_weights


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_published_weights_carry_their_preprocessing(arch: str) -> None:
    for name, published in torchvision_weights(arch).items():
        assert published.name == f"{arch}:{name}"
        assert len(published.classes) == 1000
        assert len(published.digest_prefix) == 8
        assert published.digest_prefix in published.file
        expected = 256 if name == "IMAGENET1K_V1" and arch != "resnext101_64x4d" else 232
        assert published.preprocessing == Preprocessing(resize=expected, crop=224)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Model]:
    """A file that torchvision would publish as resnet18's weights, and its model."""
    from torchvision.models import ResNet18_Weights

    model = load_model("resnet18:random:1000")
    path = tmp_path / "hub" / "checkpoints" / "weights.pth"
    path.parent.mkdir(parents=True)
    torch.save(model.module.state_dict(), path)
    prefix = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path = path.rename(path.with_name(f"resnet18-{prefix}.pth"))
    real = ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(real, "url", path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    return path, model


def test_weights_are_loaded_by_name(published: tuple[Path, Model]) -> None:
    model = load_model("resnet18:IMAGENET1K_V1")  # downloaded by URL; the digest is checked
    assert model.sha256 == published[1].sha256
    assert model.classes is not None
    assert model.classes[0] == "tench"
    assert not model.preprocessing_assumed
    assert model.source == "resnet18:IMAGENET1K_V1"
    assert load_model("resnet18:DEFAULT", image_size=112).image_size == 112


def test_a_wrong_download_is_rejected(published: tuple[Path, Model]) -> None:
    path, _ = published
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(EnvironmentFault, match=f"pass the file {path.name}"):
        load_model("resnet18:IMAGENET1K_V1")
    path.unlink()
    with pytest.raises(EnvironmentFault, match="cannot download"):
        load_model("resnet18:IMAGENET1K_V1")


def test_a_published_file_is_recognized_by_its_contents(
    published: tuple[Path, Model], tmp_path: Path
) -> None:
    renamed = published[0].rename(tmp_path / "from_a_colleague.pth")
    model = load_model(renamed)
    assert model.sha256 == published[1].sha256
    assert model.classes is not None
    assert model.classes[999] == "toilet tissue"
    assert not model.preprocessing_assumed
    assert model.source == "from_a_colleague.pth, which is resnet18:IMAGENET1K_V1"


def test_unknown_weights_are_rejected_with_the_available_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'IMAGENET1K_V9'.*resnet50:IMAGENET1K_V2"):
        load_model("resnet50:IMAGENET1K_V9")


def test_a_missing_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'resnet-opt\[timm\]'"):
        load_model("timm:resnet50.a1_in1k")


# --- timm, if installed ------------------------------------------------------------------------


def timm_module(name: str, **options: Any) -> Any:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).eval()


def test_timm_networks_are_converted_to_torchvisions() -> None:
    theirs = timm_module("resnet18.a1_in1k")
    model = pretrained.from_timm_module(theirs, "resnet18.a1_in1k", None)
    assert model.arch == "resnet18"
    assert (model.preprocessing.resize, model.preprocessing.crop) == (235, 224)
    assert model.preprocessing.interpolation == "bicubic"
    assert model.classes is not None
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(model.module(images), theirs(images), atol=1e-5)
    at_test_size = pretrained.from_timm_module(theirs, "resnet18.a1_in1k", 288)
    assert (at_test_size.preprocessing.resize, at_test_size.preprocessing.crop) == (288, 288)


def test_timm_variants_with_different_outputs_are_rejected() -> None:
    with pytest.raises(CheckpointError, match="has squeeze-and-excitation that no supported"):
        pretrained.from_timm_module(timm_module("seresnet18"), "seresnet18", None)
    silu = timm_module("resnet18", act_layer="silu")
    with pytest.raises(CheckpointError, match="different outputs"):
        pretrained.from_timm_module(silu, "resnet18", None)


def test_unknown_timm_names_are_rejected() -> None:
    timm_module("resnet18")
    with pytest.raises(CheckpointError, match="no model 'resnet5000'"):
        load_model("timm:resnet5000")
