from __future__ import annotations

import pytest
import torch

from optimizer.data import open_dataset
from optimizer.models import Model, load_model


def test_random_weights_are_fixed_and_the_callers_state_is_unchanged(resnet18: Model) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    model = load_model("resnet18:random:10")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert model.sha256 == resnet18.sha256
    assert model.num_classes == 10
    assert load_model("resnet18:random").num_classes == 1000


@pytest.mark.parametrize("size", [32, 96])
def test_activations_neither_explode_nor_vanish(size: int, resnet18: Model) -> None:
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _m, _i, output, name=name: outputs.update({name: output})
        )
        for name, layer in resnet18.module.named_modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
    ]
    preprocessing = resnet18.preprocessing.with_image_size(size)
    batch = next(open_dataset("digits:test").batches(32, preprocessing))
    with torch.inference_mode():
        logits = resnet18.module(torch.from_numpy(batch.images))
    for hook in hooks:
        hook.remove()
    assert len(outputs) == 20
    for name, output in outputs.items():
        assert 0.1 < float(output.std()) < 10, name
    assert 0.3 < float(logits.std()) < 20


def test_different_images_get_different_classes(resnet18: Model) -> None:
    batch = next(open_dataset("digits:test", limit=100).batches(100, resnet18.preprocessing))
    with torch.inference_mode():
        classes = resnet18.module(torch.from_numpy(batch.images)).argmax(dim=1)
    assert len(classes.unique()) >= 4
