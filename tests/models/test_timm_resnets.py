"""timm's plain ResNets are built from torchvision's blocks, and compute what timm's compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimizer.errors import CheckpointError
from optimizer.models import build_module, load_model
from optimizer.models.architectures import adapt_stem, check_arch, expected_shapes, infer_arch
from optimizer.models.timm_resnets import TIMM_RESNETS


def theirs(name: str, **options: Any) -> torch.nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    module: torch.nn.Module = timm.create_model(name, pretrained=False, **options)
    return module


@pytest.mark.parametrize("arch", TIMM_RESNETS)
def test_tensors_have_timms_names_shapes_and_order(arch: str) -> None:
    with torch.device("meta"):
        state = theirs(arch, num_classes=1).state_dict()
    assert list(expected_shapes(arch).items()) == [(n, tuple(t.shape)) for n, t in state.items()]
    assert infer_arch(state) == arch


@pytest.mark.parametrize("arch", ["resnet10t", "resnet14t", "resnet18d"])
@pytest.mark.parametrize("side", [64, 40])
def test_outputs_are_timms(arch: str, side: int) -> None:
    """Also where a stage has an odd side, which the pooling rounds up."""
    torch.manual_seed(0)
    reference, own = theirs(arch, num_classes=7), build_module(arch, 7)
    own.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(own.train()(images), reference.train()(images))


def test_fewer_channels() -> None:
    assert build_module("resnet10t", 2, channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 2)
    module = build_module("resnet10t", 2)
    adapt_stem(module, 4)
    assert module(torch.randn(2, 4, 32, 32)).shape == (2, 2)


def test_random_weights_of_such_a_network() -> None:
    model = load_model("resnet10t:random:5", image_size=32)
    assert (model.arch, model.num_classes) == ("resnet10t", 5)


@pytest.mark.parametrize(
    ("arch", "what"),
    [
        ("seresnet50", "squeeze-and-excitation"),
        ("resnest50d", "split attention"),
        ("ecaresnet50t", "efficient channel attention"),
        ("resnetblur50", "BlurPool"),
        ("resnet50_gn", "GroupNorm"),
        ("resnet50s", "a stem of 128 channels"),
    ],
)
def test_other_kinds_are_refused_by_name(arch: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=f"{arch} has {what}"):
        check_arch(arch)
