"""Networks that are pruned to 2:4 sparsity and fine-tuned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from optimizer.data import ImageDataset, open_dataset
from optimizer.errors import UsageError
from optimizer.models import Model, load_model
from optimizer.options import TrainOptions
from optimizer.targets.structured_sparsity import has_pattern, magnitude_mask
from optimizer.training import check_sparsity, train
from optimizer.training.pruning import Pruning

OPTIONS: dict[str, Any] = {
    "sparsity": "2:4", "image_size": 8, "epochs": 1, "batch_size": 16, "augment": "none",
    "init": "model.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def few() -> ImageDataset:
    return open_dataset("digits:train", limit=32)


@pytest.fixture(scope="module")
def dense() -> Model:
    return load_model("resnet18:random:10", image_size=8)


def _layers(module: torch.nn.Module) -> dict[str, np.ndarray]:
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    return {
        name: layer.weight.detach().numpy()
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
    }


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_pruned_weights_are_exactly_zero_and_the_others_are_trained(
    ema: float, few: ImageDataset, dense: Model
) -> None:
    """The mask is that of the weights the training started from; averaged weights have it too."""
    trained = train(few, TrainOptions(**OPTIONS, ema=ema), init=dense)
    before, after = _layers(dense.module), _layers(trained.model.module)
    assert {name for name, weight in after.items() if not has_pattern(weight)} == {"conv1"}
    assert len(after) == 21
    for name in after.keys() - {"conv1", "fc"}:  # the head was replaced
        mask = magnitude_mask(before[name])
        np.testing.assert_array_equal(after[name] != 0, mask)
        assert not np.array_equal(after[name][mask], before[name][mask])
    assert any(
        note.startswith("2:4 sparse: 20 of 21 layers; dense: conv1") for note in trained.notes
    )


def test_momentum_does_not_bring_weights_back() -> None:
    """Gradients of pruned weights are not zero, so without a mask after the step they would move."""
    layer = torch.nn.Linear(8, 4)
    pruning = Pruning(torch.nn.Sequential(layer))
    assert pruning.sparse == ["0"]
    module = torch.nn.Sequential(layer)
    pruning.apply(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(2):
        module(torch.ones(3, 8)).square().sum().backward()
        optimizer.step()
    assert not has_pattern(layer.weight.detach().numpy())
    pruning.apply(module)
    assert has_pattern(layer.weight.detach().numpy())


def test_grouped_convolutions_stay_dense() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=2), torch.nn.Conv2d(8, 4, 3))
    pruning = Pruning(module)
    assert (pruning.sparse, pruning.dense) == (["1"], ["0"])


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(UsageError, match="keeps the largest weights of a trained network"):
        check_sparsity(TrainOptions(sparsity="2:4"), None)
    with pytest.raises(UsageError, match="for classifiers"):
        check_sparsity(TrainOptions(sparsity="2:4"), load_model("retinanet_resnet18_fpn:random:3"))
