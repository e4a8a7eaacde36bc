from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimizer.errors import CheckpointError
from optimizer.models import Model, load_model

State = dict[str, torch.Tensor]


def state_of(model: Model) -> State:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s, "args": [1, 2]},
    "DataParallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled and parallel": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "double": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    "channels last": lambda s: {
        k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
        for k, v in s.items()
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_do_not_change_the_weights(wrapper: str, resnet18: Model, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WRAPPERS[wrapper](state_of(resnet18)), path)
    model = load_model(path)
    assert model.sha256 == resnet18.sha256
    assert (model.arch, model.num_classes) == ("resnet18", 10)
    assert model.source == "weights.pth"
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.module(images), resnet18.module(images))


def test_a_linear_head_in_a_sequential_needs_a_card(resnet18: Model, tmp_path: Path) -> None:
    """Transfer learning: ``model.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 10))``."""
    path = tmp_path / "tuned.pth"
    state = {k.replace("fc.", "fc.1."): v for k, v in state_of(resnet18).items()}
    torch.save({"state_dict_ema": state}, path)
    card = tmp_path / "tuned.pth.card.json"
    # A Tanh or a LayerNorm without weights may precede it: the file does not show that.
    with pytest.raises(
        CheckpointError, match=r'fc\.1 in a Sequential.*{"head": "fc\.1"} into .*card\.json'
    ):
        load_model(path)
    card.write_text('{"head": "fc.0"}')
    with pytest.raises(CheckpointError, match=r"its card says fc\.0"):
        load_model(path)
    card.write_text('{"head": "fc.1"}')
    model = load_model(path)
    assert model.sha256 == resnet18.sha256
    assert model.source == ("tuned.pth with tuned.pth.card.json (averaged weights, state_dict_ema)")


def test_a_head_of_two_linear_layers_is_rejected(resnet18: Model, tmp_path: Path) -> None:
    path = tmp_path / "tuned.pth"
    state = {k.replace("fc.", "fc.0."): v for k, v in state_of(resnet18).items()}
    torch.save(state | {"fc.3.weight": torch.zeros(2, 10), "fc.3.bias": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"2 modules with weights \(fc\.0, fc\.3\).*onnx"):
        load_model(path)


def test_safetensors_and_pth_are_equal(resnet18: Model, tmp_path: Path) -> None:
    save_file(state_of(resnet18), tmp_path / "bare.safetensors")
    assert load_model(tmp_path / "bare.safetensors").sha256 == resnet18.sha256


def test_averaged_weights_are_used_on_request_and_both_are_named(
    resnet18: Model, tmp_path: Path
) -> None:
    averaged = state_of(resnet18)
    raw = {name: tensor * 2 for name, tensor in averaged.items()}
    path = tmp_path / "both.pth"
    torch.save({"state_dict": raw, "state_dict_ema": averaged}, path)
    model = load_model(path)
    assert model.sha256 != resnet18.sha256
    assert model.source == "both.pth (state_dict)"
    assert model.remarks == (
        "uses state_dict; also there: state_dict_ema (averaged weights) (--weights ema)",
    )
    for name in ("ema", "state_dict_ema"):
        model = load_model(path, weights=name)
        assert model.sha256 == resnet18.sha256
        assert model.source == "both.pth (averaged weights, state_dict_ema)"
    path.with_name("both.pth.card.json").write_text('{"weights": "ema"}')
    assert load_model(path).sha256 == resnet18.sha256
    with pytest.raises(CheckpointError, match=r"no weights named 'swa'.*--weights state_dict"):
        load_model(path, weights="swa")


def test_half_precision_weights_become_fp32(resnet18: Model, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in state_of(resnet18).items()}
    torch.save(half, tmp_path / "half.pth")
    module = load_model(tmp_path / "half.pth").module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert not module.training


class Exploding:
    """An object in a malicious checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("dump", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_objects_in_a_file_are_never_run(dump: Callable[..., None], tmp_path: Path) -> None:
    trace = tmp_path / "exploded"
    path = tmp_path / "evil.pth"
    dump({"state_dict": Exploding(trace)}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_model(path)
    assert not trace.exists()


def test_a_whole_module_is_rejected_with_the_hint(resnet18: Model, tmp_path: Path) -> None:
    torch.save(resnet18.module, tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"could run code.*state_dict\(\)"):
        load_model(tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it is empty"),
        ({"epoch": 1, "lr": 0.1}, "only epoch, lr"),
        ([1, 2], "a list"),
        (torch.zeros(3), "a Tensor"),
    ],
)
def test_files_without_weights_are_rejected(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04nonsense", bytes(5000)])
def test_damaged_files_are_rejected(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_cut_off_files_are_rejected(suffix: str, resnet18: Model, tmp_path: Path) -> None:
    path = tmp_path / f"cut{suffix}"
    write = torch.save if suffix == ".pth" else save_file
    write(state_of(resnet18), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)


def test_torchscript_is_rejected(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but its files still exist
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_model(tmp_path / "script.pt")


def test_another_architecture_is_rejected_with_names(resnet18: Model, tmp_path: Path) -> None:
    torch.save(state_of(resnet18), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "weights.pth", arch="resnet50")
    message = str(caught.value)
    assert "first is layer1.0.conv3.weight" in message
    assert "layer1.0.conv1.weight is (64, 64, 3, 3), not (64, 64, 1, 1)" in message
    assert "pass --arch resnet18" in message
    state = state_of(resnet18)
    state["layer1.2.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"unexpected, the first is layer1\.2\.conv1\.weight"):
        load_model(tmp_path / "weights.pth", arch="resnet18")
    with pytest.raises(CheckpointError, match="cannot infer the architecture"):
        load_model(tmp_path / "weights.pth")


def test_missing_heads_are_named(resnet18: Model, tmp_path: Path) -> None:
    state = state_of(resnet18)
    del state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match=r"2 tensors missing, the first is fc\.weight"):
        load_model(tmp_path / "backbone.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_named(value: float, resnet18: Model, tmp_path: Path) -> None:
    state = state_of(resnet18)
    state["layer2.1.conv2.weight"][3, 1, 0, 2] = value
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"layer2\.1\.conv2\.weight contains NaN or infinite"):
        load_model(tmp_path / "weights.safetensors")


def test_negative_variances_are_named(resnet18: Model, tmp_path: Path) -> None:
    state = state_of(resnet18)
    state["bn1.running_var"][0] = -1
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"bn1\.running_var contains negative"):
        load_model(tmp_path / "weights.safetensors")


def test_other_networks_are_rejected_with_the_route_over_onnx(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"no ResNet .*features\.0\.weight.*torch\.onnx\.export"
    ):
        load_model(tmp_path / "w.pth")
