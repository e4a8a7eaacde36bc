"""Keras models and weights as a source: ``.keras``, ``.h5``, ``.weights.h5`` and ``keras:ResNet50``.

Neither Keras nor TensorFlow is needed. What the file states is taken (structure, normalization inside
the model); what Keras does not store is assumed as ``keras.applications`` does it, and reported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import CheckpointError
from optimizer.models.architectures import ARCHITECTURES, build_module, infer_arch, torchvision_name
from optimizer.models.checkpoint import with_card_file
from optimizer.models.heads import layered_state, set_activations, without_hidden
from optimizer.models.keras_archive import KerasFile, Weights, opened
from optimizer.models.keras_graph import Layer, Network, read_network, refuse
from optimizer.models.keras_head import Dense, read_head
from optimizer.models.keras_layers import network_of_weights
from optimizer.models.keras_pixels import as_preprocessing, caffe_preprocessing, read_normalization
from optimizer.models.keras_resnet import KerasResNet, follow
from optimizer.models.keras_running import KerasFacts, run_keras
from optimizer.models.model import Model, weights_digest
from optimizer.models.model_sources import Source
from optimizer.models.native import NativeModel
from optimizer.models.pretrained import torchvision_weights
from optimizer.models.weights import fit_weights

if TYPE_CHECKING:
    from torch import nn

__all__ = ["KERAS", "load_keras", "load_keras_name", "native_keras"]

_DEFAULT_SIZE = 224
_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
_FILE = "{}_weights_tf_dim_ordering_tf_kernels.h5"


@dataclass(frozen=True, kw_only=True)
class _Published:
    """ImageNet weights of ``keras.applications``.

    Attributes:
        name: The name in Keras.
        arch: The architecture here.
        md5: Digest of the file with the classifier, as in Keras's source.
        top1: Accuracy that Keras documents for ImageNet's validation images.
    """

    name: str
    arch: str
    md5: str
    top1: float

    @property
    def file(self) -> str:
        """Name of the file that Keras downloads."""
        return _FILE.format(self.name.lower())


_PUBLISHED = (
    _Published(
        name="ResNet50", arch="resnet50_v1", md5="2cb95161c43110f7111970584f804107", top1=0.749
    ),
    _Published(
        name="ResNet101", arch="resnet101_v1", md5="f1aeb4b969a6efcfb50fad2f0c20cfc5", top1=0.764
    ),
    _Published(
        name="ResNet152", arch="resnet152_v1", md5="100835be76be38e30d865e96f2aaae62", top1=0.766
    ),
)


def load_keras(path: Path, arch: str | None = None, weights: str | None = None) -> Model:
    """Load a Keras model or Keras weights.

    A file with weights only must be of a ResNet of ``keras.applications`` with one fully connected
    layer, because it does not state the structure. ImageNet's published weights are recognized by
    their digest.

    Args:
        path: ``.keras``, ``.h5``, ``.hdf5`` or ``.weights.h5``.
        arch: The architecture, if the user states it.
        weights: Which of several networks; a Keras file has one.

    Raises:
        CheckpointError: The file is damaged, or the model is not a ResNet that torchvision has or
            that halves the image in the first convolution of a block; the message names the layer.
        MissingLibrary: h5py is not installed.
    """
    if weights is not None:
        raise CheckpointError(f"{path} has one network", hint="leave out --weights")
    with opened(path) as file:
        if file.config is None:
            network = network_of_weights(file.layers, path)
        else:
            network = read_network(file.config, path)
        tensors = _reader(file)
        found = follow(network, tensors, path)
        head = read_head(network, found.features, tensors, path)
        pixels = read_normalization(network, found.stem, tensors, path)
    module, found_arch = _build(found, head, path)
    if arch is not None and arch != found_arch:
        raise CheckpointError(
            f"{path} is a {found_arch}, not a {arch}", hint=f"omit --arch or pass {found_arch}"
        )
    size = _image_size(network, path)
    model = Model(
        module=module,
        arch=found_arch,
        classes=None,
        num_classes=len(head[-1].bias),
        preprocessing=caffe_preprocessing(size)
        if pixels is None
        else as_preprocessing(pixels, size, path),
        source=path.name,
        sha256=weights_digest(module.state_dict()),
        preprocessing_assumed=pixels is None,
    )
    return with_card_file(_with_published(model, path), path)


def load_keras_name(name: str, image_size: int | None = None) -> Model:
    """Load ImageNet weights of ``keras.applications`` that Keras has downloaded.

    Args:
        name: ``ResNet50``, ``ResNet101`` or ``ResNet152``.
        image_size: Not needed; `load_model` resizes.

    Raises:
        CheckpointError: There is no such network, or its file is not in Keras's folder.
    """
    del image_size
    published = next((p for p in _PUBLISHED if p.name.lower() == name.lower()), None)
    if published is None:
        names = ", ".join(f"keras:{p.name}" for p in _PUBLISHED)
        hint = f"use one of {names}"
        if name.lower().endswith("v2"):
            hint += "; ResNet V2 goes over ONNX: model.export('model.onnx', format='onnx')"
        raise CheckpointError(f"there are no weights keras:{name} to read", hint=hint)
    path = _downloaded(published)
    if not path.is_file():
        raise CheckpointError(
            f"the weights of keras:{published.name} are not at {path}",
            hint=f"download {_URL}{published.file} to it, or pass the file itself",
        )
    model = load_keras(path)
    if model.expected_top1 is None:
        raise CheckpointError(
            f"{path} is not the file that Keras publishes (its MD5 differs)",
            hint="download it again; your own weights can be passed as a file",
        )
    return model


def native_keras(name: str, model: Model, interpreter: Path | None) -> NativeModel:
    """Keras itself for a model that `load_keras` or `load_keras_name` loaded; see `open_native`."""
    published = next((p for p in _PUBLISHED if name.lower() == f"keras:{p.name}".lower()), None)
    path = Path(name).expanduser() if published is None else _downloaded(published)
    with opened(path) as file:
        if file.config is None:
            application = next((p.name for p in _PUBLISHED if p.arch == model.arch), None)
            facts = KerasFacts(path=path, application=application, normalizes=False)
        else:
            network = read_network(file.config, path)
            tensors = _reader(file)
            stem = follow(network, tensors, path).stem
            inside = read_normalization(network, stem, tensors, path) is not None
            facts = KerasFacts(path=path, application=None, normalizes=inside)
    return run_keras(facts, model, interpreter)


def _downloaded(published: _Published) -> Path:
    """Where Keras keeps the weights that it downloads."""
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    return folder / published.file


def _reader(file: KerasFile) -> Callable[[Layer], Mapping[str, Any]]:
    """Reads the weights of a layer by where the file keeps them."""
    by_place = {weights.place: weights for weights in file.layers}

    def read(layer: Layer) -> Mapping[str, Any]:
        parts = layer.name.split("/")
        weights = by_place.get(layer.place) or by_place.get((parts[0], parts[-1]))
        if weights is None:
            raise refuse(
                file.path,
                f"there are no weights for {layer.name}",
                "save the model again with model.save('model.keras')",
            )
        return _checked(file, layer, weights)

    return read


def _checked(file: KerasFile, layer: Layer, weights: Weights) -> Mapping[str, Any]:
    import numpy as np

    values = file.read(weights, _tensors_of(layer))
    wanted = {"Conv2D": 4, "Dense": 2}.get(layer.kind)
    if wanted is not None and values["kernel"].ndim != wanted:
        raise refuse(
            file.path, f"the kernel of {layer.name} has {values['kernel'].ndim} dimensions"
        )
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{file.path}: {layer.name}/{name} contains NaN or infinite values",
                hint="use weights from before the training diverged",
            )
    return values


def _tensors_of(layer: Layer) -> tuple[str, ...]:
    """The names of a layer's tensors in Keras's order."""
    config = layer.config
    if layer.kind in {"Conv2D", "Dense"}:
        return ("kernel", "bias") if config.get("use_bias", True) else ("kernel",)
    if layer.kind == "Normalization":
        return ("mean", "variance", "count")
    scale = ("gamma",) if config.get("scale", True) else ()
    center = ("beta",) if config.get("center", True) else ()
    return (*scale, *center, "moving_mean", "moving_variance")


def _build(found: KerasResNet, head: Sequence[Dense], path: Path) -> tuple[nn.Module, str]:
    """The torchvision network with these weights, and its architecture."""
    import torch

    body = {name: torch.from_numpy(array) for name, array in found.state.items()}
    pairs = [(torch.from_numpy(dense.weight), torch.from_numpy(dense.bias)) for dense in head]
    state = {**body, **layered_state(pairs)}
    shapes = infer_arch(state if len(pairs) == 1 else without_hidden(state, str(path)))
    if shapes is None:
        stages = [
            len({n.split(".")[1] for n in body if n.startswith(f"layer{i}.")}) for i in range(1, 5)
        ]
        raise refuse(
            path,
            f"a ResNet with {'-'.join(map(str, stages))} blocks of its widths is not one that this "
            "package builds",
        )
    candidates = [arch for arch in ARCHITECTURES if torchvision_name(arch) == shapes]
    arch = _matching(candidates, found, path)
    module, _ = fit_weights(state, arch, str(path))
    set_activations(module, [dense.activation for dense in head[:-1]], str(path))
    return module, arch


def _matching(candidates: Sequence[str], found: KerasResNet, path: Path) -> str:
    """The architecture whose convolutions have the same strides, padding and groups."""
    import torch
    from torch import nn

    differences = []
    for arch in candidates:
        with torch.device("meta"):
            module = build_module(arch, 2)
        for name, conv in found.convs.items():
            other = module.get_submodule(name)
            assert isinstance(other, nn.Conv2d)
            wanted = {"stride": other.stride, "padding": other.padding, "groups": other.groups}
            actual = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
            key = next((key for key in wanted if wanted[key] != actual[key]), None)
            if key is not None:
                differences.append(
                    f"{conv.layer.name} has {key} {actual[key]}, in {arch} {wanted[key]}"
                )
                break
        else:
            return arch
    raise refuse(path, f"its convolutions are not those of a ResNet: {'; '.join(differences)}")


def _image_size(network: Network, path: Path) -> int:
    shape = network.input_shape
    if len(shape) != 4:
        return _DEFAULT_SIZE
    _, height, width, channels = shape
    if channels not in {None, 3}:
        raise refuse(path, f"the model takes images with {channels} channels, not 3")
    if height != width:
        raise refuse(path, f"the model takes images of {height} x {width}, which are not square")
    return height or _DEFAULT_SIZE


def _with_published(model: Model, path: Path) -> Model:
    """Classes, preprocessing and accuracy of weights that Keras publishes."""
    if model.num_classes != 1000 or not model.preprocessing_assumed:
        return model
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    published = next((p for p in _PUBLISHED if p.md5 == digest.hexdigest()), None)
    if published is None:
        return model
    imagenet = torchvision_weights(torchvision_name(model.arch))
    return replace(
        model,
        classes=next(iter(imagenet.values())).classes,
        preprocessing=caffe_preprocessing(_DEFAULT_SIZE),
        preprocessing_assumed=False,
        source=f"keras:{published.name}",
        expected_top1=published.top1,
    )


KERAS = Source(
    forms=("a Keras model (.keras, .h5, .weights.h5)", "keras:ResNet50"),
    suffixes=(".keras", ".h5", ".hdf5"),
    prefix="keras:",
    load_file=load_keras,
    load_name=load_keras_name,
    native=native_keras,
)
