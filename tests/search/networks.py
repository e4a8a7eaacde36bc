"""Small networks with one layer that INT8 cannot take, and images that they classify."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir

from optimizer.data import Preprocessing
from optimizer.options import EncodingOptions
from tests.precision.networks import SIZE, images, network
from tests.precision.test_int8_graphs import run, statistics

__all__ = ["HOSTILE", "OPTIONS", "data", "graph_file", "hostile", "labelled", "statistics"]

HOSTILE = "layer1.0.conv2"
_SEED, _CHANNEL = 1, 1
"""A network and a channel that is alive in it."""
OPTIONS = EncodingOptions(method="minmax", equalize=False)
"""Equalization would fix the network that `hostile` makes."""


def _scale(model: ir.Model, name: str, channel: tuple[int | slice, ...], factor: float) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[channel] *= factor
    value.const_value = ir.tensor(array, name=name)


def hostile() -> ir.Model:
    """The network, with one channel a thousand times as large where `HOSTILE` reads it.

    Its weights for that channel are a thousandth, so the network computes what it did; but the
    tensor's one scale leaves nothing of the other channels, and one scale an output channel nothing
    of those weights.
    """
    model = network(_SEED)
    _scale(model, "layer1.0.conv1.weight", (_CHANNEL,), 1000.0)
    _scale(model, "layer1.0.conv1.bias", (_CHANNEL,), 1000.0)
    _scale(model, f"{HOSTILE}.weight", (slice(None), _CHANNEL), 1e-3)
    return model


def graph_file(path: Path, model: ir.Model | None = None) -> Path:
    """`hostile`, or another of these networks, as the exporter would write it."""
    model = model or hostile()
    metadata = {
        "preprocessing": json.dumps(Preprocessing(resize=SIZE, crop=SIZE).to_dict()),
        "arch": "tiny",
        "batch": "dynamic",
    }
    for key, value in metadata.items():
        model.metadata_props[f"resnet_opt.{key}"] = value
    ir.save(model, path)
    return path


def labelled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and what `hostile` says they are: float32 and int64."""
    batch = images(count, seed)
    (logits,) = run(network(_SEED), batch)
    return batch, logits.argmax(axis=1).astype(np.int64)


def data(path: Path, count: int, seed: int) -> str:
    """An ``.npz`` file of `labelled` images."""
    batch, labels = labelled(count, seed)
    np.savez(path, images=batch, labels=labels)
    return str(path)
