"""Narrow networks: what pruning makes is a network like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optimizer.data import open_dataset
from optimizer.errors import CheckpointError
from optimizer.exporting import export_onnx
from optimizer.graphs.metadata import metadata_of
from optimizer.models import Widths, build_module, load_model, save_checkpoint
from optimizer.models.architectures import full_widths, infer_arch, infer_network
from optimizer.models.model import Model, weights_digest
from optimizer.models.narrow import apply_widths
from optimizer.options import TrainOptions
from optimizer.training import train

NARROW = {"layer1.0": (16, 32, 256), "layer2.2": None, "layer3.5": (16, 8, 1024), "layer4.2": None}


def _narrow_state() -> dict[str, torch.Tensor]:
    widths = full_widths("resnet50").replaced(NARROW)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_module("resnet50", 5, widths=widths).state_dict()


def test_widths_are_found_from_the_shapes_of_a_plain_state_dict(tmp_path: Path) -> None:
    state = _narrow_state()
    assert infer_arch(state) is None
    path = tmp_path / "narrow.pth"
    torch.save(state, path)
    model = load_model(str(path), image_size=32)
    assert model.arch == "resnet50"
    assert model.narrow == full_widths("resnet50").replaced(NARROW)
    assert weights_digest(model.module.state_dict()) == weights_digest(state)
    assert "layer2.2" not in model.widths.by_block
    assert "layer2.3" in model.widths.by_block  # the others keep their numbers


def test_a_pruned_residual_stream_is_found_too() -> None:
    """As torch-pruning writes it: the stream of a stage is one width everywhere."""
    full = full_widths("resnet18")
    stream = {1: 48, 2: 96, 3: 200, 4: 384}
    blocks = {name: (40, stream[int(name[5])]) for name, _ in full.blocks}
    widths = Widths(48, tuple(blocks.items()))
    with torch.device("meta"):
        state = build_module("resnet18", 7, widths=widths).state_dict()
    assert infer_network(state) == ("resnet18", widths)
    assert tuple(state["fc.weight"].shape) == (7, 384)


def test_groups_of_a_resnext_stay_whole() -> None:
    full = full_widths("resnext50_32x4d")
    widths = full.replaced({"layer1.1": (64, 64, 256)})
    with torch.device("meta"):
        module = build_module("resnext50_32x4d", 3, widths=widths)
    conv = module.get_submodule("layer1.1.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.groups, conv.in_channels) == (16, 64)
    assert infer_network(module.state_dict()) == ("resnext50_32x4d", widths)
    with pytest.raises(CheckpointError, match="no whole groups of 4"):
        build_module("resnext50_32x4d", 3, widths=full.replaced({"layer1.1": (66, 66, 256)}))


def test_a_network_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    state = _narrow_state()
    state["layer1.0.conv2.weight"] = torch.zeros(32, 24, 3, 3)  # conv1 gives 16
    assert infer_network(state) is None
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="closest is resnet50"):
        load_model(str(tmp_path / "bad.pth"))


def test_a_whole_network_of_another_architecture_is_not_a_narrow_one(tmp_path: Path) -> None:
    """Every tensor of a ResNet-18 is one of a ResNet-34."""
    torch.save(build_module("resnet18", 4).state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="pass --arch resnet18"):
        load_model(str(tmp_path / "a.pth"), arch="resnet34")


def test_the_first_block_of_a_stage_must_be_there() -> None:
    widths = full_widths("resnet18").replaced({"layer2.0": None})
    with pytest.raises(CheckpointError, match=r"layer2\.0"):
        apply_widths(build_module("resnet18", 2), widths, 2)


def test_damaged_widths_are_named() -> None:
    with pytest.raises(CheckpointError, match="widths of the network are damaged"):
        Widths.from_dict({"stem": 64, "layer1.0": [0, 64]})


@pytest.fixture(scope="module")
def narrow18(resnet18: Model) -> Model:
    widths = full_widths("resnet18").replaced({"layer1.1": None, "layer4.1": (32, 512)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = build_module("resnet18", 10, widths=widths).eval()
    return Model(
        module=module,
        arch="resnet18",
        classes=tuple("0123456789"),
        num_classes=10,
        preprocessing=resnet18.preprocessing,
        source="narrow",
        sha256=weights_digest(module.state_dict()),
    )


def test_file_and_graph_state_the_widths(narrow18: Model, tmp_path: Path) -> None:
    artifact = save_checkpoint(narrow18, tmp_path / "narrow.safetensors", details={})
    assert narrow18.narrow is not None
    stated = artifact.manifest.settings["widths"]
    assert Widths.from_dict(stated) == narrow18.narrow
    loaded = load_model(str(artifact.path))
    assert loaded.widths == narrow18.widths
    assert loaded.sha256 == narrow18.sha256
    graph = export_onnx(loaded, tmp_path / "narrow.onnx")  # checked against PyTorch there
    assert Widths.from_dict(metadata_of(graph.path).widths or {}) == narrow18.narrow


def test_training_continues_a_narrow_network(narrow18: Model) -> None:
    options = TrainOptions(data="digits:train", epochs=1, batch_size=16, image_size=32)
    data = open_dataset("digits:train", limit=32)
    trained = train(data, options, init=narrow18).model
    assert trained.widths == narrow18.widths
    other = train(
        open_dataset("digits:train", limit=32).select(np.arange(32)), options, init=narrow18
    )
    assert other.model.sha256 == trained.sha256
