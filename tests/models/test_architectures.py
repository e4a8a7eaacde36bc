from __future__ import annotations

import pytest
import torch

from optimizer.errors import CheckpointError
from optimizer.models import ARCHITECTURES, build_module
from optimizer.models.architectures import expected_shapes, infer_arch, torchvision_name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_architecture_is_inferred_from_its_weights(arch: str) -> None:
    with torch.device("meta"):
        state = build_module(arch, 7).state_dict()
    assert infer_arch(state) == torchvision_name(arch)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    for name in counters:  # some files lack them
        del state[name]
    assert infer_arch(state) == torchvision_name(arch)


def test_other_weights_match_no_architecture() -> None:
    with torch.device("meta"):
        state = build_module("resnet18", 7).state_dict()
    state["layer1.0.conv2.weight"] = torch.empty(64, 32, 3, 3, device="meta")
    assert infer_arch(state) is None
    assert infer_arch({"weight": torch.zeros(1)}) is None


def test_expected_shapes() -> None:
    shapes = expected_shapes("resnet50")
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["fc.weight"] == (1, 2048)


def test_zero_init_starts_branches_at_zero() -> None:
    module = build_module("resnet18", 2, zero_init_residual=True)
    assert not module.get_parameter("layer1.0.bn2.weight").any()
    assert build_module("resnet18", 2).get_parameter("layer1.0.bn2.weight").all()


def test_v1_halves_the_image_in_the_first_convolution_of_a_block() -> None:
    strides = {
        arch: [build_module(arch, 2).get_submodule(f"layer3.0.conv{i}").stride for i in (1, 2, 3)]
        for arch in ("resnet50", "resnet50_v1")
    }
    assert strides["resnet50"] == [(1, 1), (2, 2), (1, 1)]
    assert strides["resnet50_v1"] == [(2, 2), (1, 1), (1, 1)]


def test_unknown_names_are_rejected_with_the_supported_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'resnet51'.*resnet50, resnet101"):
        build_module("resnet51", 10)
