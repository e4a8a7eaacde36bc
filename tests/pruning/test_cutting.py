"""Saliency and cutting, against networks in which the same channels are set to zero."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from optimizer.data import ImageDataset, open_dataset
from optimizer.errors import CheckpointError
from optimizer.models import Model
from optimizer.models.model import weights_digest
from optimizer.progress import Silent
from optimizer.pruning import check_prunable
from optimizer.pruning.cutting import cut, estimate_statistics
from optimizer.pruning.saliency import measure_saliency
from tests.pruning.networks import tiny


@pytest.fixture(scope="module")
def images() -> ImageDataset:
    return open_dataset("digits:train", limit=24, workers=0)


def _outputs(module: nn.Module, model: Model, data: ImageDataset) -> torch.Tensor:
    (batch,) = data.batches(len(data), model.preprocessing)
    with torch.inference_mode():
        return module(torch.from_numpy(batch.images))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_cut_network_computes_what_zero_channels_compute(arch: str, images: ImageDataset) -> None:
    model = tiny(arch)
    saliency = measure_saliency(model, images, Silent())
    inner = len(model.widths.by_block["layer1.0"]) - 1
    changes = {
        "layer1.0": (*(8, 16)[:inner], 16),
        "layer2.1": (*(4, 5)[:inner], 24),
        "layer3.1": None,
    }
    widths = model.widths.replaced(changes)
    narrow = cut(model, widths, saliency, check_prunable(model))
    assert narrow.widths == widths
    masked = copy.deepcopy(model.module)
    for name in ("layer1.0", "layer2.1"):
        for number, width in enumerate(widths.by_block[name][:-1], start=1):
            norm = masked.get_submodule(f"{name}.bn{number}")
            assert isinstance(norm, nn.BatchNorm2d)
            gone = np.setdiff1d(np.arange(16), saliency.kept(f"{name}.conv{number}", width, 1))
            assert len(gone) == 16 - width
            with torch.no_grad():
                norm.weight[torch.from_numpy(gone)] = 0
                norm.bias[torch.from_numpy(gone)] = 0
    last = masked.get_submodule(f"layer3.1.bn{inner + 1}")
    assert isinstance(last, nn.BatchNorm2d)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    expected = _outputs(masked, model, images)
    torch.testing.assert_close(
        _outputs(narrow.module, model, images), expected, atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(_outputs(model.module, model, images), expected, atol=1e-2)


def test_groups_are_cut_as_a_whole(images: ImageDataset) -> None:
    from optimizer.models import Widths, build_module
    from optimizer.models.architectures import full_widths

    blocks = {n: (32, 32, b[-1] // 16) for n, b in full_widths("resnext50_32x4d").blocks}
    sizes = {1: 4, 2: 8, 3: 16, 4: 32}
    widths = Widths(16, tuple(blocks.items()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module("resnext50_32x4d", 10, widths=widths).eval()
    model = Model(
        module=module, arch="resnext50_32x4d", classes=None, num_classes=10,
        preprocessing=tiny("resnet18").preprocessing, source="x", sha256="",
    )  # fmt: skip
    prunable = check_prunable(model)
    assert {name: prunable.units[name] for name in ("layer1.0", "layer3.2")} == {
        "layer1.0": sizes[1],
        "layer3.2": sizes[3],
    }
    saliency = measure_saliency(model, images, Silent())
    narrow = cut(model, widths.replaced({"layer1.1": (12, 12, 16)}), saliency, prunable)
    conv = narrow.module.get_submodule("layer1.1.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert conv.groups == 3
    joint = saliency.channels["layer1.1.conv1"] + saliency.channels["layer1.1.conv2"]
    best = np.sort(np.argsort(-joint.reshape(-1, 4).sum(axis=1))[:3])
    kept = torch.from_numpy((best[:, None] * 4 + np.arange(4)).ravel())
    before = model.module.state_dict()["layer1.1.conv2.weight"]
    assert torch.equal(conv.weight, before[kept])
    _outputs(narrow.module, model, images)


def test_saliency_is_the_squared_change_of_the_loss_to_first_order(images: ImageDataset) -> None:
    """Against a small step towards zero of one channel, image by image."""
    model = tiny("resnet18")
    saliency = measure_saliency(model, images, Silent())
    (batch,) = images.batches(len(images), model.preprocessing)
    labels = torch.from_numpy(batch.labels)
    step = 1e-6

    def losses(scale: float) -> torch.Tensor:
        module = copy.deepcopy(model.module).double()
        norm = module.get_submodule("layer2.0.bn1")
        assert isinstance(norm, nn.BatchNorm2d)
        with torch.no_grad():
            norm.weight[3] *= scale
            norm.bias[3] *= scale
            logits = module(torch.from_numpy(batch.images).double())
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    slope = (losses(1 + step) - losses(1 - step)) / (2 * step)
    expected = float(slope.square().mean())
    assert saliency.channels["layer2.0.conv1"][3] == pytest.approx(expected, rel=1e-2)
    assert saliency.images == 24
    assert saliency.blocks["layer1.1"] > 0


def test_statistics_are_those_of_the_images(images: ImageDataset) -> None:
    model = tiny("resnet18")
    before = weights_digest(model.module.state_dict())
    seen: list[torch.Tensor] = []
    stem = model.module.get_submodule("conv1")
    hook = stem.register_forward_hook(lambda _, __, output: seen.append(output))
    changed = estimate_statistics(model, images, 24)
    hook.remove()
    norm = changed.module.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, torch.cat(seen).mean(dim=(0, 2, 3)))
    assert changed.sha256 != before
    assert not changed.module.training
    assert norm.momentum == 0.1


def test_detectors_and_sigmoids_are_refused() -> None:
    from dataclasses import replace

    from optimizer.models import load_model

    detector = load_model("retinanet_resnet18_fpn:random:3")
    with pytest.raises(CheckpointError, match="is a detector"):
        check_prunable(detector)
    model = tiny("resnet18")
    model.module.register_module("fc", nn.Linear(40, 1))
    with pytest.raises(CheckpointError, match="has one output"):
        check_prunable(replace(model, num_classes=2))
    model.module.get_submodule("layer1.0").register_module("bn2", nn.Identity())
    model.module.register_module("fc", nn.Linear(40, 10))
    with pytest.raises(CheckpointError, match=r"layer1\.0 has convolutions without BatchNorm"):
        check_prunable(model)
