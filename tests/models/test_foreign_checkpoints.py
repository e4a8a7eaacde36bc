"""Checkpoints of other trainers: taken as they are, or refused with the way in."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from optimizer.errors import CheckpointError
from optimizer.models import Model, load_model
from tests.models.foreign_checkpoints import (
    FOREIGN,
    State,
    doubled,
    outcomes,
    prefixed,
    table,
    write,
)

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
SAME = [foreign.file for foreign in FOREIGN if foreign.same]


@pytest.fixture(scope="module")
def state(resnet18: Model) -> State:
    return dict(resnet18.module.state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def results(state: State, folder: Path) -> dict[str, Model | CheckpointError]:
    return outcomes(state, folder)


@pytest.mark.parametrize("file", SAME)
def test_the_network_is_found(
    file: str, results: dict[str, Model | CheckpointError], resnet18: Model
) -> None:
    model = results[file]
    assert isinstance(model, Model), model
    assert model.sha256 == resnet18.sha256
    assert (model.arch, model.num_classes) == ("resnet18", 10)


def test_the_table_in_the_documentation_is_what_happens(
    results: dict[str, Model | CheckpointError], folder: Path
) -> None:
    """``RESNET_OPT_WRITE_TABLES=1`` writes it."""
    begin, end = "<!-- checkpoints -->\n", "<!-- /checkpoints -->"
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get("RESNET_OPT_WRITE_TABLES"):
        head, tail = page.split(begin)[0], page.split(end)[1]
        page = head + begin + table(results, folder) + end + tail
        PAGE.write_text(page, encoding="utf-8")
    assert page.split(begin)[1].split(end)[0] == table(results, folder)


def test_averaged_weights_inside_a_state_dict(state: State, tmp_path: Path) -> None:
    path = tmp_path / "ema.ckpt"
    content = {**prefixed("model.", state), **prefixed("ema_model.module.", doubled(state))}
    content["ema_model.step"] = torch.tensor(7)
    torch.save({"state_dict": content}, path)
    raw, averaged = load_model(path), load_model(path, weights="ema")
    assert torch.equal(raw.module.fc.weight, state["fc.weight"])
    assert torch.equal(averaged.module.fc.weight, 2 * state["fc.weight"])
    assert averaged.source == "ema.ckpt (averaged weights, state_dict/ema_model.module.)"
    assert raw.source == "ema.ckpt (state_dict/model.)"
    assert raw.remarks[0].startswith(
        "uses state_dict/model.; also there: state_dict/ema_model.module. (averaged weights)"
    )
    assert raw.remarks[1].endswith("that the ResNet does not have: ema_model.step")


def test_averaged_weights_that_are_not_there(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"no averaged weights.*leave out --weights"):
        load_model(tmp_path / "w.pth", weights="ema")


def test_one_of_several_networks_is_chosen_by_name(state: State, tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    torch.save({**prefixed("first.", state), **prefixed("second.", doubled(state))}, path)
    with pytest.raises(CheckpointError, match=r"2 networks: first\., second\..*--weights first\."):
        load_model(path)
    for name in ("second.", "second"):
        model = load_model(path, weights=name)
        assert torch.equal(model.module.fc.weight, 2 * state["fc.weight"])


def test_a_card_that_a_refusal_shows_is_a_way_in(
    results: dict[str, Model | CheckpointError], state: State, tmp_path: Path
) -> None:
    """A hint that shows a card is followed to the letter, and the file is taken."""
    followed = 0
    for foreign in FOREIGN:
        hint = getattr(results[foreign.file], "hint", None) or ""
        if (card := re.search(r"\{.*\}", hint)) is not None:
            path = write(foreign, state, tmp_path)
            path.with_name(f"{path.name}.card.json").write_text(card.group(), encoding="utf-8")
            assert load_model(path).arch == "resnet18"
            followed += 1
    assert followed == 2


def test_layers_beside_the_network_are_not_left_out(state: State, tmp_path: Path) -> None:
    """Inside a prefix, an unknown module may be one that the network computes with."""
    torch.save(
        prefixed("model.", state | {"sa.conv.weight": torch.zeros(1, 2, 7, 7)}), tmp_path / "w.pth"
    )
    with pytest.raises(CheckpointError, match=r"unexpected, the first is sa\.conv\.weight.*onnx"):
        load_model(tmp_path / "w.pth")


def test_the_arch_option_confirms_what_the_trainer_stated(state: State, tmp_path: Path) -> None:
    path = tmp_path / "blur.pth"
    torch.save({"arch": "resnetblur18", "state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"computes something else.*--arch resnet18"):
        load_model(path)
    assert load_model(path, arch="resnet18").arch == "resnet18"


def test_one_input_channel(state: State, tmp_path: Path) -> None:
    path = tmp_path / "gray.pth"
    torch.save(state | {"conv1.weight": state["conv1.weight"].sum(1, keepdim=True)}, path)
    model = load_model(path)
    assert (model.channels, model.preprocessing.color) == (1, "grayscale")
    assert model.preprocessing_assumed
    assert model.module(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    card = path.with_name("gray.pth.card.json")
    card.write_text('{"preprocessing": {"mean": [0.3, 0.3, 0.3], "std": [0.4, 0.4, 0.4]}}')
    assert load_model(path).preprocessing.mean == (0.3,)
    card.write_text('{"preprocessing": {"mean": [0.3], "std": [0.4]}}')
    assert load_model(path).preprocessing.color == "grayscale"
    card.write_text('{"preprocessing": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.4, 0.4]}}')
    with pytest.raises(CheckpointError, match=r"one channel, but its card states 3 means.*color"):
        load_model(path)


def test_names_of_classes_of_a_single_output(state: State, tmp_path: Path) -> None:
    path, card = tmp_path / "one.pth", tmp_path / "one.pth.card.json"
    torch.save(state | {"fc.weight": state["fc.weight"][:1], "fc.bias": state["fc.bias"][:1]}, path)
    card.write_text('{"classes": ["good", "bad"]}')
    model = load_model(path)
    assert (model.classes, model.num_classes, model.num_outputs) == (("good", "bad"), 2, 1)
    card.write_text('{"classes": ["bad"]}')
    with pytest.raises(CheckpointError, match=r"names 1 classes.*2 \(one output"):
        load_model(path)
