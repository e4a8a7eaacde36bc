from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.errors import CheckpointError
from optimizer.models import Model, build_head, hidden_sizes, load_model, save_checkpoint
from optimizer.models.heads import set_activations, stated_activations


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    plain = load_model("resnet18:random:10", image_size=32)
    plain.module.register_module("fc", build_head(512, (24, 16), 10))
    return replace(plain, module=plain.module.eval())


def test_a_head_without_hidden_layers_is_linear() -> None:
    assert type(build_head(4, (), 2)) is torch.nn.Linear


def test_the_head_computes_its_layers(model: Model) -> None:
    fc = model.module.get_submodule("fc")
    state = fc.state_dict()
    features = expected = torch.randn(3, 512)
    for name in ("hidden.0.", "hidden.2."):
        expected = torch.relu(expected @ state[f"{name}weight"].T + state[f"{name}bias"])
    expected = expected @ state["weight"].T + state["bias"]
    assert torch.allclose(fc(features), expected, atol=1e-5)


def test_checkpoints_keep_the_hidden_layers(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, details={})
    bare = tmp_path / "bare.pth"
    torch.save(model.module.state_dict(), bare)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        for file in (path, bare):
            loaded = load_model(str(file))
            assert hidden_sizes(loaded.module) == (24, 16)
            assert (loaded.arch, loaded.num_classes) == ("resnet18", 10)
            assert torch.equal(loaded.module(images), model.module(images))


def test_hidden_layers_that_do_not_fit(model: Model, tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    state["fc.hidden.2.weight"] = torch.zeros(16, 23)
    path = tmp_path / "wrong.safetensors"
    save_file(state, path)
    assert load_file(path)
    with pytest.raises(CheckpointError, match="do not fit each other"):
        load_model(str(path))


def test_checkpoints_state_activations_other_than_relu(model: Model, tmp_path: Path) -> None:
    set_activations(model.module, ["tanh", "linear"], "here")
    assert stated_activations(model.module) == ["tanh", "linear"]
    fc, features = model.module.get_submodule("fc"), torch.randn(3, 512)
    state = fc.state_dict()
    first = torch.tanh(features @ state["hidden.0.weight"].T + state["hidden.0.bias"])
    second = first @ state["hidden.2.weight"].T + state["hidden.2.bias"]
    expected = second @ state["weight"].T + state["bias"]
    assert torch.allclose(fc(features), expected, atol=1e-5)
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, details={})
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_model(str(path)).module(images), model.module(images))


def test_a_head_as_older_versions_wrote_it_is_read(model: Model, tmp_path: Path) -> None:
    """A Sequential in the place of the last layer, whose parts the header lists."""
    set_activations(model.module, ["relu", "tanh"], "here")
    places = {"fc.hidden.0": "fc.0", "fc.hidden.2": "fc.2", "fc": "fc.4"}
    tensors = {}
    for name, tensor in model.module.state_dict().items():
        layer, _, kind = name.rpartition(".")
        tensors[f"{places.get(layer, layer)}.{kind}"] = tensor.contiguous()
    path = tmp_path / "old.safetensors"

    def write(parts: list[str]) -> None:
        card = {"arch": "resnet18", "classes": None, "head_layers": parts}
        save_file(tensors, path, metadata={"resnet-opt": json.dumps(card)})

    write(["linear", "relu", "linear", "tanh", "linear"])
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_model(str(path)).module(images), model.module(images))
    for wrong in (["linear", "gelu", "linear"], ["linear", "relu", "linear", "linear"], []):
        write(wrong)
        with pytest.raises(CheckpointError, match="its card lists"):
            load_model(str(path))


def test_activations_that_do_not_fit_are_refused(model: Model) -> None:
    for wrong in (["relu"], ["relu", "gelu"]):
        with pytest.raises(CheckpointError, match="states the activations"):
            set_activations(model.module, wrong, "x.safetensors")
