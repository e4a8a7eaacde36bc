"""Checkpoints as other trainers write them, for tests and for the table in docs/sources.md."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from optimizer.errors import CheckpointError
from optimizer.models import Model, load_model
from optimizer.models.copies import ONNX_ROUTE

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another trainer.

    Attributes:
        file: Its name.
        written_by: Who writes such files.
        content: Its content, made from a ResNet-18's state dict.
        same: Whether the network that is read must be the ResNet-18 itself.
        card: A card file beside it.
    """

    file: str
    written_by: str
    content: Callable[[State], Any]
    same: bool = True
    card: str = ""


def prefixed(prefix: str, state: State) -> State:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def doubled(state: State) -> State:
    """Other weights of the same network, as an average has."""
    return {name: tensor * 2 for name, tensor in state.items()}


def _head_apart(state: State, body: str, head: str) -> State:
    return {
        name.replace("fc.", head, 1) if name.startswith("fc.") else body + name: tensor
        for name, tensor in state.items()
    }


def _hugging_face(state: State) -> State:
    patterns = [
        (r"conv1\.", "resnet.embedder.embedder.convolution."),
        (r"bn1\.", "resnet.embedder.embedder.normalization."),
        (r"fc\.", "classifier.1."),
        (r"layer(\d)\.(\d)\.downsample\.0", r"STAGE\1.layers.\2.shortcut.convolution"),
        (r"layer(\d)\.(\d)\.downsample\.1", r"STAGE\1.layers.\2.shortcut.normalization"),
        (r"layer(\d)\.(\d)\.conv(\d)", r"STAGE\1.layers.\2.layer.N\3.convolution"),
        (r"layer(\d)\.(\d)\.bn(\d)", r"STAGE\1.layers.\2.layer.N\3.normalization"),
    ]
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            other, count = re.subn("^" + pattern, replacement, name)
            if count:
                break
        other = re.sub("STAGE(.)", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}", other)
        renamed[re.sub(r"\.N(\d)", lambda m: f".{int(m[1]) - 1}", other)] = tensor.clone()
    return renamed


def _sequential(state: State) -> State:
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = {name: name.partition(".") for name in state}
    return {
        f"classifier.{rest}" if first == "fc" else f"features.{children[first]}.{rest}": state[name]
        for name, (first, _, rest) in parts.items()
    }


def _channels(state: State, count: int) -> State:
    stem = state["conv1.weight"]
    return state | {"conv1.weight": torch.cat([stem, stem], 1)[:, :count].clone()}


def _without(state: State, *parts: str) -> State:
    return {name: t for name, t in state.items() if not any(part in name for part in parts)}


def _deep_stem(state: State) -> State:
    """ResNet-D as timm stores it: shortcuts begin with a pooling, which has no tensors."""
    deep = {
        re.sub(r"downsample\.(\d)", lambda found: f"downsample.{int(found[1]) + 1}", name): tensor
        for name, tensor in state.items()
        if name != "conv1.weight"
    }
    for number, shape in {"0": (32, 3), "3": (32, 32), "6": (64, 32)}.items():
        deep[f"conv1.{number}.weight"] = torch.zeros(*shape, 3, 3)
    for number in "14":
        for part, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
            deep[f"conv1.{number}.{part}"] = torch.full((32,), float(value))
    return deep


CARD_OF_FOUR = (
    '{"preprocessing": {"color": "RGBA", "mean": [0.5, 0.5, 0.5, 0.5], '
    '"std": [0.5, 0.5, 0.5, 0.5]}}'
)
EXTRA = {"criterion.pos_weight": torch.ones(1)}

FOREIGN = [
    Foreign("weights.pth", "`torch.save(model.state_dict())`", lambda s: s),
    Foreign(
        "model_best.pth.tar",
        "PyTorch's ImageNet example, DataParallel",
        lambda s: {"epoch": 3, "arch": "resnet18", "state_dict": prefixed("module.", s)},
    ),
    Foreign(
        "checkpoint.pth",
        "torchvision's reference scripts, with EMA",
        lambda s: {
            "model": s,
            "model_ema": {"n_averaged": torch.tensor(5), **prefixed("module.", doubled(s))},
            "optimizer": {"state": {0: {"momentum_buffer": s["fc.bias"]}}},
            "args": argparse.Namespace(lr=0.1, model="resnet18"),
        },
    ),
    Foreign(
        "last.pth.tar",
        "timm's training script, with EMA",
        lambda s: {
            "arch": "resnet18",
            "state_dict": s,
            "state_dict_ema": doubled(s),
            "args": argparse.Namespace(model="resnet18"),
            "metric": np.float64(0.9),
        },
    ),
    Foreign(
        "best.pth",
        "a trainer that keeps NumPy's best accuracy",
        lambda s: {"state_dict": s, "best_acc": np.float32(0.9), "epoch": np.int64(3)},
    ),
    Foreign(
        "epoch=3.ckpt",
        "Lightning, with a loss that has class weights",
        lambda s: {
            "state_dict": {**prefixed("model.", s), **EXTRA},
            "hyper_parameters": {"lr": 0.1},
        },
    ),
    Foreign(
        "ema.ckpt",
        "Lightning, with an EMA copy of the network",
        lambda s: {
            "state_dict": {**prefixed("model.", s), **prefixed("ema_model.module.", doubled(s))}
        },
    ),
    Foreign(
        "compiled.pth",
        "`torch.compile` in DataParallel in a wrapper",
        lambda s: {"net": prefixed("module.net._orig_mod.", s)},
    ),
    Foreign(
        "fsdp.pth",
        "FSDP, whose names are inside the paths",
        lambda s: {n.replace(".0.", ".0._fsdp_wrapped_module."): t for n, t in s.items()},
    ),
    Foreign(
        "pretrained.pth",
        "OpenMMLab's mmpretrain",
        lambda s: {"meta": {}, "state_dict": _head_apart(s, "backbone.", "head.fc.")},
    ),
    Foreign("model.safetensors", "Hugging Face's ResNetForImageClassification", _hugging_face),
    Foreign(
        "thop.pth",
        "a network that was counted with thop",
        lambda s: s | {"total_ops": torch.zeros(1), "layer1.0.conv1.total_ops": torch.zeros(1)},
    ),
    Foreign(
        "lit.ckpt",
        "Lightning's transfer-learning example",
        lambda s: {"state_dict": _sequential(s)},
        same=False,
    ),
    Foreign(
        "lit_with_card.ckpt",
        "the same, with a card",
        lambda s: {"state_dict": _sequential(s)},
        card='{"head": "classifier"}',
    ),
    Foreign(
        "normalized.pth",
        "a network behind a layer that normalizes images",
        lambda s: {**prefixed("1.", s), "0.mean": torch.zeros(3), "0.std": torch.ones(3)},
    ),
    Foreign(
        "two_networks.pth",
        "distillation: two networks that were trained",
        lambda s: {**prefixed("first.", s), **prefixed("second.", doubled(s))},
        same=False,
    ),
    Foreign(
        "gray.pth", "a network for images of one channel", lambda s: _channels(s, 1), same=False
    ),
    Foreign("four.pth", "a network for four channels", lambda s: _channels(s, 4), same=False),
    Foreign(
        "four_with_card.pth",
        "the same, with a card",
        lambda s: _channels(s, 4),
        False,
        CARD_OF_FOUR,
    ),
    Foreign("six.pth", "a network for six channels", lambda s: _channels(s, 6), same=False),
    Foreign(
        "one.pth",
        "a classifier with one output",
        lambda s: (
            s | {"fc.weight": s["fc.weight"][:1].clone(), "fc.bias": s["fc.bias"][:1].clone()}
        ),
        same=False,
    ),
    Foreign(
        "resnet18d.pth.tar",
        "timm's ResNet-D: a deep stem",
        lambda s: {"arch": "resnet18d", "state_dict": _deep_stem(s)},
        same=False,
    ),
    Foreign(
        "resnetblur18.pth.tar",
        "timm: BlurPool, which has no weights",
        lambda s: {"arch": "resnetblur18", "state_dict": s},
        same=False,
    ),
    Foreign(
        "senet.pth",
        "squeeze-and-excitation",
        lambda s: s | {"layer1.0.se.fc1.weight": torch.zeros(4, 64)},
        same=False,
    ),
    Foreign(
        "cbam.pth",
        "attention beside the stages",
        lambda s: s | {"ca.fc.weight": torch.zeros(4, 64)},
        same=False,
    ),
    Foreign(
        "cifar.pth",
        "the 3 x 3 stem for small images",
        lambda s: s | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
        same=False,
    ),
    Foreign("gn.pth", "GroupNorm", lambda s: _without(s, "running_", "num_batches"), same=False),
    Foreign(
        "backbone.pth", "a network without its last layer", lambda s: _without(s, "fc."), same=False
    ),
    Foreign(
        "vgg.pth", "another network", lambda s: {"features.0.weight": s["conv1.weight"]}, same=False
    ),
    Foreign(
        "module.pth",
        "`torch.save(model)`: the whole module",
        lambda s: {"model": torch.nn.Linear(2, 2)},
        same=False,
    ),
]


def write(foreign: Foreign, state: State, folder: Path) -> Path:
    """Write the checkpoint, and its card if it has one."""
    path = folder / foreign.file
    content = foreign.content(state)
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    if foreign.card:
        path.with_name(f"{path.name}.card.json").write_text(foreign.card, encoding="utf-8")
    return path


def outcomes(state: State, folder: Path) -> dict[str, Model | CheckpointError]:
    """What happens to each checkpoint, by file name."""
    results: dict[str, Model | CheckpointError] = {}
    for foreign in FOREIGN:
        path = write(foreign, state, folder)
        try:
            results[foreign.file] = load_model(path)
        except CheckpointError as error:
            results[foreign.file] = error
        path.unlink()
    return results


def table(results: dict[str, Model | CheckpointError], folder: Path) -> str:
    """The table of docs/sources.md."""
    rows = ["| file | written by | what happens |", "|---|---|---|"]
    rows += [f"| `{f.file}` | {f.written_by} | {_row(results[f.file], folder)} |" for f in FOREIGN]
    return "\n".join(rows) + "\n"


def _row(result: Model | CheckpointError, folder: Path) -> str:
    if isinstance(result, CheckpointError):
        hint = (result.hint or "").replace(ONNX_ROUTE, "export it with torch.onnx.export")
        text = f"**Refused**: {result.message}. Hint: {hint}"
        return text.replace(f"{folder}/", "").replace("_", r"\_")
    classes = "one output" if result.num_outputs == 1 else f"{result.num_classes} classes"
    kind = f"{result.arch}, {classes}, {result.preprocessing.color}"
    return "; ".join([f"Taken: {kind}", *result.remarks]).replace("_", r"\_")
