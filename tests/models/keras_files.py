"""Writes Keras files from what benchmarks/keras_record.py recorded of real ones."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from keras_values import values

FOLDER = Path(__file__).parent / "recorded"
_TENSORS = {
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
    2: ("kernel", "bias"),
    1: ("kernel",),
}
Change = Callable[[dict[str, Any]], None]


@cache
def recorded(name: str) -> Mapping[str, Any]:
    """A recording; do not modify it."""
    record: Mapping[str, Any] = json.loads(
        gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes())
    )
    return record


def write_keras(
    name: str, suffix: str, folder: Path, *, change: Change | None = None, only: str | None = None
) -> Path:
    """Write a file as Keras saved it.

    Args:
        name: Name of the recording.
        suffix: ``.keras``, ``.h5`` or ``.weights.h5``.
        folder: Where to write it.
        change: Changes the configuration in place.
        only: Write only weights of layers whose names begin so, which makes the file small.
    """
    found = json.loads(json.dumps(recorded(name)["files"][suffix]))
    path = folder / f"{name}{suffix}"
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for group, attributes in found["attributes"].items():
            target = file.require_group(group) if group else file
            for key, value in attributes.items():
                if key == "model_config" and change is not None:
                    config = json.loads(value)
                    change(config)
                    value = json.dumps(config)  # noqa: PLW2901
                target.attrs[key] = value
        for dataset, shape in found["datasets"].items():
            layer, tensor = _identity(dataset, found, name)
            if layer is not None and layer.startswith(only or ""):
                file[dataset] = values(layer, tensor, tuple(shape))
    if found["config"] is None:
        path.write_bytes(content.getvalue())
        return path
    if change is not None:
        change(found["config"])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(found["config"]))
        archive.writestr("model.weights.h5", content.getvalue())
    return path


def _identity(dataset: str, found: Mapping[str, Any], record: str) -> tuple[str | None, str]:
    """The layer's name and the tensor's, for `values`."""
    parent, _, last = dataset.rpartition("/")
    if not last.isdecimal():  # older files name both
        return parent.rpartition("/")[2], last.partition(":")[0]
    attributes = found["attributes"].get(parent, {})
    siblings = [d for d in found["datasets"] if d.rpartition("/")[0] == parent]
    name = attributes.get("name") or _names_by_place(record).get(parent)
    if name is None or len(siblings) not in _TENSORS or "seed_generator" in dataset:
        return None, ""
    return name, _TENSORS[len(siblings)][int(last)]


@cache
def _names_by_place(record: str) -> dict[str, str]:
    """Keras 2 counts layers without naming them; the names are in the configuration."""
    from optimizer.models.keras_graph import read_network

    config = recorded(record)["files"][".keras"]["config"]
    layers = read_network(config, Path()).layers.values()
    return {
        "/".join(f"layers/{part}" for part in x.place) + "/vars": x.name.rpartition("/")[2]
        for x in layers
    }


def logits(name: str) -> np.ndarray:
    """The recorded logits, N x 10 float32."""
    return np.asarray(recorded(name)["logits"], np.float32)
