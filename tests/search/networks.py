"""A small network with one layer that is inaccurate in INT8, and images that it classifies."""

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
"""A network and one of its active channels."""
OPTIONS = EncodingOptions(method="minmax", equalize=False)
"""No equalization: it would fix the network of `hostile`."""


def _scale(model: ir.Model, name: str, channel: tuple[int | slice, ...], factor: float) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[channel] *= factor
    value.const_value = ir.tensor(array, name=name)


def hostile() -> ir.Model:
    """A network in which one input channel of `HOSTILE` is a thousand times as large as before.

    The weights of `HOSTILE` for that channel are divided by a thousand, so the FP32 output does not
    change. But with one scale for the tensor, the other channels are rounded to zero, and with one
    scale per output channel, so are those weights.
    """
    model = network(_SEED)
    _scale(model, "layer1.0.conv1.weight", (_CHANNEL,), 1000.0)
    _scale(model, "layer1.0.conv1.bias", (_CHANNEL,), 1000.0)
    _scale(model, f"{HOSTILE}.weight", (slice(None), _CHANNEL), 1e-3)
    return model


def graph_file(path: Path, model: ir.Model | None = None) -> Path:
    """`hostile`, or another network, saved as the exporter would write it."""
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
    """Images and the classes that `hostile` predicts in FP32: float32 and int64."""
    batch = images(count, seed)
    (logits,) = run(network(_SEED), batch)
    return batch, logits.argmax(axis=1).astype(np.int64)


def data(path: Path, count: int, seed: int) -> str:
    """Write `labelled` images to an ``.npz`` file; returns its path."""
    batch, labels = labelled(count, seed)
    np.savez(path, images=batch, labels=labels)
    return str(path)
