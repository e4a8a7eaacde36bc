"""Maps a Keras model to a torchvision ResNet by its structure, whatever its layers are called.

The layers are followed from the input: stem, residual blocks, head. What a layer computes is
compared with the torchvision module that takes its weights (kernel, stride, padding, groups), so a
network of another kind is refused and never half converted. Biases of convolutions go into the mean
of the BatchNorm behind them, and BatchNorm's epsilon into its scale; both are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.models.keras_graph import Layer, Network, refuse

__all__ = [
    "KerasResNet",
    "Tensors",
    "activation_of",
    "follow",
    "is_relu",
    "pair_of",
    "statistics_of",
]

Tensors = Callable[[Layer], Mapping[str, Any]]
_EPSILON = 1e-5
"""PyTorch's default, which torchvision's ResNets keep."""
_NORMS = ("BatchNormalization", "SyncBatchNormalization")
_V2 = (
    "it is a pre-activation network (ResNet V2), which torchvision's ResNet cannot hold",
    "export it with Keras: model.export('model.onnx', format='onnx'); resnet-opt build takes ONNX files",
)


@dataclass(frozen=True, kw_only=True)
class _Conv:
    """A convolution as PyTorch describes it."""

    layer: Layer
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int


@dataclass(kw_only=True)
class KerasResNet:
    """A ResNet found in a Keras model.

    Attributes:
        state: torchvision's tensors by name, without the head.
        convs: The convolutions by torchvision's name.
        stem: The layer whose output the stem reads.
        features: The layer that ends the last block.
    """

    state: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    convs: dict[str, _Conv] = field(default_factory=dict)
    stem: str = ""
    features: str = ""


def follow(network: Network, tensors: Tensors, path: Path) -> KerasResNet:
    """Find a ResNet in a model.

    Args:
        network: The model.
        tensors: Reads the weights of a layer.
        path: The file, for messages.

    Raises:
        CheckpointError: The model is not a ResNet; the message names the first layer that differs.
    """
    return _Follower(network, tensors, path).run()


class _Follower:
    def __init__(self, network: Network, tensors: Tensors, path: Path) -> None:
        self.network, self.tensors, self.path = network, tensors, path
        self.readers = network.readers()
        self.found = KerasResNet()

    def run(self) -> KerasResNet:
        self.found.stem = self._start()
        tensor = self._stem(self.found.stem)
        stage, block = 0, 0
        while (parts := self._block(tensor)) is not None:
            main, shortcut, tensor = parts
            if shortcut or stage == 0:
                stage, block = stage + 1, 0
            prefix = f"layer{stage}.{block}"
            for index, (conv, norm) in enumerate(main, start=1):
                self._store(conv, norm, f"{prefix}.conv{index}", f"{prefix}.bn{index}")
            for conv, norm in shortcut:
                self._store(conv, norm, f"{prefix}.downsample.0", f"{prefix}.downsample.1")
            block += 1
        if stage == 0:
            raise self._unexpected(self._only(tensor), "a residual block")
        self.found.features = tensor
        return self.found

    # --- walking ---------------------------------------------------------------------------------

    def _only(self, tensor: str) -> Layer:
        readers = self.readers[tensor]
        if len(readers) != 1:
            raise refuse(self.path, f"{len(readers)} layers read {tensor}, where a ResNet has one")
        return readers[0]

    def _unexpected(self, layer: Layer, wanted: str) -> Exception:
        return refuse(self.path, f"{layer.name} is a {layer.kind}, where a ResNet has {wanted}")

    def _start(self) -> str:
        """The tensor before the first convolution and its padding."""
        tensor = self.network.input
        order = list(self.network.layers.values())
        first = next((layer for layer in order if layer.kind == "Conv2D"), None)
        if first is None:
            raise refuse(self.path, "the model has no convolution")
        tensor = first.inputs[0]
        producer = self.network.layers.get(tensor)
        if producer is not None and producer.kind == "ZeroPadding2D":
            tensor = producer.inputs[0]
        return tensor

    def _conv(self, layer: Layer) -> _Conv:
        """A convolution, with the padding layer before it if that comes first."""
        padding = (0, 0)
        if layer.kind == "ZeroPadding2D":
            padding, layer = self._padding(layer), self._only(layer.name)
        if layer.kind != "Conv2D":
            raise self._unexpected(layer, "a convolution")
        config = layer.config
        kernel, stride = pair_of(config["kernel_size"]), pair_of(config["strides"])
        if pair_of(config.get("dilation_rate", 1)) != (1, 1):
            raise refuse(self.path, f"{layer.name} is dilated")
        if activation_of(config.get("activation")) != "linear":
            raise refuse(
                self.path, f"{layer.name} has its own activation instead of a BatchNorm and a ReLU"
            )
        if config["padding"] == "same" and kernel != (1, 1):
            if stride != (1, 1) or any(size % 2 == 0 for size in kernel):
                raise refuse(
                    self.path,
                    f"{layer.name} has stride {stride[0]} and padding='same', which pads one side "
                    "more than the other; a ResNet pads both sides alike",
                )
            padding = (padding[0] + kernel[0] // 2, padding[1] + kernel[1] // 2)
        return _Conv(
            layer=layer,
            kernel=kernel,
            stride=stride,
            padding=padding,
            groups=int(config.get("groups", 1)),
        )

    def _padding(self, layer: Layer) -> tuple[int, int]:
        (top, bottom), (left, right) = (pair_of(sides) for sides in layer.config["padding"])
        if top != bottom or left != right:
            raise refuse(self.path, f"{layer.name} pads one side more than the other")
        return top, left

    def _relu(self, tensor: str) -> str:
        layer = self._only(tensor)
        if not is_relu(layer):
            raise self._unexpected(layer, "a ReLU")
        return layer.name

    def _norm(self, conv: _Conv) -> Layer:
        layer = self._only(conv.layer.name)
        if layer.kind not in _NORMS:
            raise self._unexpected(layer, "a BatchNorm")
        return layer

    def _stem(self, tensor: str) -> str:
        conv = self._conv(self._only(tensor))
        if self._only(conv.layer.name).kind not in _NORMS:
            raise refuse(self.path, *_V2)
        norm = self._norm(conv)
        self._store(conv, norm, "conv1", "bn1")
        tensor = self._relu(norm.name)
        layer = self._only(tensor)
        padding = (0, 0)
        if layer.kind == "ZeroPadding2D":
            padding, layer = self._padding(layer), self._only(layer.name)
        config = layer.config
        fits = (
            layer.kind == "MaxPooling2D"
            and pair_of(config["pool_size"]) == (3, 3)
            and pair_of(config["strides"] or config["pool_size"]) == (2, 2)
        )
        if not fits or config["padding"] != "valid" or padding != (1, 1):
            raise self._unexpected(layer, "a 3 x 3 max-pooling with stride 2 that pads one pixel")
        return layer.name

    def _block(self, tensor: str) -> _Block | None:
        """A residual block that starts at a tensor; ``None`` where the blocks end."""
        readers = self.readers[tensor]
        if len(readers) == 1 and readers[0].kind in _NORMS:
            raise refuse(self.path, *_V2)
        if len(readers) != 2:
            return None
        branches = [self._branch(layer) for layer in readers]
        branches.sort(key=lambda branch: len(branch[0]))
        (shortcut, joined), (main, end) = branches
        if joined is not end or len(shortcut) > 1 or len(main) not in {2, 3}:
            raise refuse(self.path, f"the layers after {tensor} are not a residual block")
        return main, shortcut, self._relu(end.name)

    def _branch(self, layer: Layer) -> tuple[_Units, Layer]:
        """Convolutions with their BatchNorms up to an Add, and the Add."""
        units: _Units = []
        while layer.kind != "Add":
            if units:
                if not is_relu(layer):
                    raise self._unexpected(layer, "a ReLU or an Add")
                layer = self._only(layer.name)
            conv = self._conv(layer)
            norm = self._norm(conv)
            units.append((conv, norm))
            layer = self._only(norm.name)
        return units, layer

    # --- weights ---------------------------------------------------------------------------------

    def _store(self, conv: _Conv, norm: Layer, conv_name: str, norm_name: str) -> None:
        values = self.tensors(conv.layer)
        kernel = np.asarray(values["kernel"])  # height x width x inputs x outputs
        state = self.found.state
        state[f"{conv_name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        gamma, beta, mean, variance = statistics_of(norm, self.tensors, self.path)
        if "bias" in values:
            mean = mean - np.asarray(values["bias"], np.float64)
        epsilon = float(norm.config["epsilon"])
        gamma = gamma * np.sqrt((variance + _EPSILON) / (variance + epsilon))
        for name, array in (
            ("weight", gamma),
            ("bias", beta),
            ("running_mean", mean),
            ("running_var", variance),
        ):
            state[f"{norm_name}.{name}"] = array.astype(np.float32)
        self.found.convs[conv_name] = conv


_Units = list[tuple[_Conv, Layer]]
_Block = tuple[_Units, _Units, str]


def pair_of(value: Any) -> tuple[int, int]:
    """Height and width of a setting that may be one number for both."""
    first, second = value if isinstance(value, (list, tuple)) else (value, value)
    return int(first), int(second)


def activation_of(activation: Any) -> str:
    """The name of an activation in any of Keras's notations."""
    if isinstance(activation, Mapping):
        activation = activation.get("config", activation.get("class_name"))
    if isinstance(activation, Mapping):
        activation = activation.get("name")
    return str(activation or "linear").lower()


def is_relu(layer: Layer) -> bool:
    """Whether a layer is a ReLU without limit, slope or threshold."""
    config = layer.config
    if layer.kind == "ReLU":
        plain = config.get("max_value") is None and not config.get("negative_slope")
        return plain and not config.get("threshold")
    return layer.kind == "Activation" and activation_of(config.get("activation")) == "relu"


def statistics_of(norm: Layer, tensors: Tensors, path: Path) -> tuple[NDArray[np.float64], ...]:
    """Scale, shift, mean and variance of a BatchNorm over channels.

    Raises:
        CheckpointError: It normalizes another axis.
    """
    axis = norm.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else axis
    if axis not in {-1, 3, 1}:
        raise refuse(path, f"{norm.name} normalizes axis {axis}, not the channels")
    stored = tensors(norm)
    channels = np.asarray(stored["moving_mean"]).size
    defaults = {"gamma": 1.0, "beta": 0.0}
    return tuple(
        np.asarray(stored[name], np.float64)
        if name in stored
        else np.full(channels, defaults[name])
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
