"""Opens files that Keras wrote, without Keras and without executing anything in them.

Three formats are read: ``.keras`` (a ZIP archive with ``config.json`` and ``model.weights.h5``),
Keras 3's ``.weights.h5``, and the older HDF5 files of whole models or weights. Only numbers and JSON
are taken. Links that leave the file, virtual and external datasets, and files whose content is far
larger than the file itself are refused before the content is read.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import CheckpointError, MissingLibrary

__all__ = ["KerasFile", "Weights", "opened"]

Arrays = dict[str, NDArray[np.float32]]

_SLACK = 64 * 2**20
_LARGEST_RATIO = 20
"""Content may be this many times larger than the file, plus `_SLACK` bytes."""
_MOST_ENTRIES = 100_000
_DEEPEST = 16
_NOT_READ = frozenset({"count"})
"""Counters of training, which are integers."""
_DAMAGED = "copy it again, or save the model again with model.save('model.keras')"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of one layer, still in the file.

    Attributes:
        name: The layer's name; empty if the file only numbers layers.
        place: Where the file keeps them, such as ``functional/conv2d_3``, for counting layers.
        datasets: Datasets in Keras's order, by ``kernel``, ``bias``, ``gamma`` …, or by number
            where the file does not name them.
    """

    name: str
    place: tuple[str, ...]
    datasets: Mapping[str, Any]


@dataclass(kw_only=True)
class KerasFile:
    """An open Keras file.

    Attributes:
        path: The file.
        config: The model's structure as Keras saved it; ``None`` for a file with weights only.
        layers: The weights of every layer that has some.
        budget: How many bytes may still be read.
    """

    path: Path
    config: Mapping[str, Any] | None
    layers: Sequence[Weights]
    budget: int = field(repr=False)

    def read(self, weights: Weights, names: Sequence[str]) -> Arrays:
        """Read a layer's tensors as float32.

        Args:
            weights: One of `layers`.
            names: What the layer holds in Keras's order, e.g. ``("kernel", "bias")``.

        Raises:
            CheckpointError: A tensor is missing, is not of a float type, or is larger than the file
                can hold.
        """
        found = dict(weights.datasets)
        if found and all(name.isdecimal() for name in found):
            if len(found) != len(names):
                raise CheckpointError(
                    f"{self.path}: the layer {weights.name or '/'.join(weights.place)} holds "
                    f"{len(found)} tensors, not {len(names)} ({', '.join(names)})",
                    hint="save the whole model instead: model.save('model.keras')",
                )
            found = {name: found[str(index)] for index, name in enumerate(names)}
        missing = [name for name in names if name not in found]
        if missing:
            raise CheckpointError(
                f"{self.path}: the layer {weights.name} has no {missing[0]}", hint=_DAMAGED
            )
        return {
            name: self._array(found[name], f"{weights.name}/{name}")
            for name in names
            if name not in _NOT_READ
        }

    def _array(self, dataset: Any, name: str) -> NDArray[np.float32]:
        if dataset.external is not None or dataset.is_virtual:
            raise CheckpointError(
                f"{self.path}: {name} is stored in another file",
                hint="save the model as one file: model.save('model.keras')",
            )
        if dataset.dtype.kind != "f" or "dtype" in dataset.attrs:
            kind = dataset.attrs.get("dtype", dataset.dtype)
            raise CheckpointError(
                f"{self.path}: {name} is stored as {kind}, not as a float32",
                hint="save the model with float32 weights",
            )
        self.budget -= int(np.prod(dataset.shape, dtype=np.float64)) * dataset.dtype.itemsize
        if self.budget < 0:
            raise CheckpointError(
                f"{self.path} claims to hold far more than its size (at {name})", hint=_DAMAGED
            )
        return np.asarray(dataset[()], dtype=np.float32)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[KerasFile]:
    """Open a Keras file by its content, whatever its suffix.

    Raises:
        CheckpointError: It is damaged, is not a Keras file, or refers to other files.
        MissingLibrary: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingLibrary("h5py is not installed", hint="pip install h5py") from error

    try:
        config, content, size = _unpack(path)
        with h5py.File(content, "r") as file:
            if config is None:
                config = _config_in(file, path)
            layers = _numbered(file, path) if "layers" in file else _named(file, path)
            budget = _LARGEST_RATIO * size + _SLACK
            yield KerasFile(path=path, config=config, layers=layers, budget=budget)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or not a Keras file: {reason}", hint=_DAMAGED
        ) from error


def _unpack(path: Path) -> tuple[Mapping[str, Any] | None, Any, int]:
    """The configuration if it is outside the HDF5 file, the HDF5 file, and the size on disk."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        return None, path, size
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for needed in ("config.json", "model.weights.h5"):
                if names.count(needed) != 1:
                    raise CheckpointError(
                        f"{path} is a ZIP archive without {needed}, not a Keras model",
                        hint="save the model again with model.save('model.keras')",
                    )
            config = _json(_member(archive, "config.json", path), path)
            return config, io.BytesIO(_member(archive, "model.weights.h5", path)), size
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint=_DAMAGED) from error


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    allowed = _LARGEST_RATIO * path.stat().st_size + _SLACK
    if archive.getinfo(name).file_size > allowed:
        raise CheckpointError(
            f"{path} claims to hold far more than its size (in {name})", hint=_DAMAGED
        )
    with archive.open(name) as file:
        return file.read(allowed)


def _json(text: str | bytes, path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{path}: its configuration is nested too deeply") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its configuration is not a model", hint=_DAMAGED)
    return config


def _config_in(file: Any, path: Path) -> Mapping[str, Any] | None:
    """The ``model_config`` attribute of an HDF5 file; absent if only weights were saved."""
    text = file.attrs.get("model_config")
    return None if text is None else _json(text, path)


# --- Keras 3: layers/conv2d_3/vars/0 -------------------------------------------------------------


def _numbered(file: Any, path: Path) -> list[Weights]:
    found: list[Weights] = []
    _collect(_child(file, "layers", path), (), found, path)
    return found


def _collect(group: Any, place: tuple[str, ...], found: list[Weights], path: Path) -> None:
    if len(place) > _DEEPEST or len(found) > _MOST_ENTRIES:
        raise CheckpointError(f"{path}: its groups are nested in each other", hint=_DAMAGED)
    for key in group:
        layer = _child(group, key, path)
        if "layers" in layer:
            _collect(_child(layer, "layers", path), (*place, key), found, path)
        elif "vars" in layer:
            variables = _child(layer, "vars", path)
            datasets = {name: _dataset(variables, name, path) for name in variables}
            if datasets:
                name = _text(variables.attrs.get("name", ""))
                found.append(Weights(name=name, place=(*place, key), datasets=datasets))


# --- older files: conv1_conv/conv1_conv/kernel:0 ----------------------------------------------------


def _named(file: Any, path: Path) -> list[Weights]:
    root = _child(file, "model_weights", path) if "model_weights" in file else file
    groups = _names(root, "layer_names")
    if groups is None:
        raise CheckpointError(
            f"{path} is an HDF5 file, but not one that Keras wrote",
            hint="save the model with model.save('model.keras')",
        )
    layers: dict[tuple[str, str], dict[str, Any]] = {}
    for name in groups:
        group = _child(root, name, path)
        for full in _names(group, "weight_names") or []:
            *parents, last = full.split("/")
            tensor = last.partition(":")[0]
            layer = parents[-1] if parents else name
            entry = layers.setdefault((name, layer), {})
            if tensor in entry:
                raise CheckpointError(f"{path} has two layers named {layer} in {name}")
            holder = group
            for part in parents:
                holder = _child(holder, part, path)
            entry[tensor] = _dataset(holder, last, path)
    return [
        Weights(name=layer, place=(group, layer), datasets=datasets)
        for (group, layer), datasets in layers.items()
    ]


def _names(group: Any, attribute: str) -> list[str] | None:
    """A list of names, which Keras splits into ``…0``, ``…1`` where it is long."""
    if attribute in group.attrs:
        return [_text(name) for name in group.attrs[attribute]]
    parts: list[str] = []
    count = 0
    while f"{attribute}{count}" in group.attrs:
        parts += [_text(name) for name in group.attrs[f"{attribute}{count}"]]
        count += 1
    return parts if count else None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _dataset(group: Any, name: str, path: Path) -> Any:
    import h5py

    return _member_of(group, name, path, h5py.Dataset)


def _child(group: Any, name: str, path: Path) -> Any:
    import h5py

    return _member_of(group, name, path, h5py.Group)


def _member_of(group: Any, name: str, path: Path, kind: type) -> Any:
    """A member of a group that is stored in this file."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        raise CheckpointError(f"{path}: {name} is missing", hint=_DAMAGED)
    if not isinstance(link, h5py.HardLink):
        raise CheckpointError(
            f"{path}: {name} is a link, and links may lead out of the file",
            hint="save the model as one file: model.save('model.keras')",
        )
    member = group[name]
    if not isinstance(member, kind):
        raise CheckpointError(
            f"{path}: {name} is a {type(member).__name__}, not a {kind.__name__}", hint=_DAMAGED
        )
    return member
