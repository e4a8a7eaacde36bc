"""The head of a Keras ResNet: pooling and fully connected layers, as logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.models.heads import ACTIVATIONS
from optimizer.models.keras_graph import Layer, Network, refuse
from optimizer.models.keras_resnet import (
    Tensors,
    activation_of,
    is_relu,
    pair_of,
    statistics_of,
)

__all__ = ["Dense", "read_head"]

_SOFTMAX = frozenset({"softmax", "log_softmax"})
_ACTIVATIONS = frozenset({"linear", "sigmoid", *ACTIVATIONS}) | _SOFTMAX
_NORMS = frozenset({"BatchNormalization", "SyncBatchNormalization"})
_STRIDE = 32
"""Of the feature map that a ResNet pools."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A fully connected layer with the activation behind it.

    Attributes:
        weight: Outputs x inputs, float32.
        bias: Outputs, float32.
        activation: ``linear``, ``relu`` or ``tanh``; of the last layer always ``linear``.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: str = "linear"


def read_head(network: Network, features: str, tensors: Tensors, path: Path) -> list[Dense]:
    """Follow a model from its last residual block to its output.

    BatchNorms are folded into the layer before or behind them, and a softmax at the end is taken
    off, because engines are compared by logits. One output with a sigmoid becomes two logits, 0 and
    that of the sigmoid, whose softmax is the same probability.

    Args:
        network: The model.
        features: The layer that ends the last block.
        tensors: Reads the weights of a layer.
        path: The file, for messages.

    Raises:
        CheckpointError: There is no classifier, or a layer that a head of fully connected layers
            does not have.
    """
    head = _Head(network, tensors, path)
    readers = network.readers()
    tensor = features
    while tensor != network.output:
        if len(readers[tensor]) != 1:
            raise refuse(path, f"{len(readers[tensor])} layers read {tensor} in the head")
        layer = readers[tensor][0]
        head.add(layer)
        tensor = layer.name
    return head.as_logits()


class _Head:
    def __init__(self, network: Network, tensors: Tensors, path: Path) -> None:
        self.network, self.tensors, self.path = network, tensors, path
        self.layers: list[Dense] = []
        self.pooled = False
        self.pending: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        """Scale and shift of a BatchNorm whose fully connected layer has not come yet."""

    def add(self, layer: Layer) -> None:
        """Take the next layer into the head."""
        if not self.pooled:
            self._check_pooling(layer)
            self.pooled = True
        elif layer.kind == "Dense":
            self._add_dense(layer)
        elif layer.kind in _NORMS:
            self._add_norm(layer)
        elif layer.kind in {"Activation", "ReLU", "Softmax"} and self.layers and not self.pending:
            self.layers[-1] = self._activated(self.layers[-1], layer)
        elif layer.kind != "Flatten":
            raise self._unexpected(layer)

    def _unexpected(self, layer: Layer) -> Exception:
        wanted = "a fully connected layer" if self.pooled else "an average over the feature map"
        return refuse(self.path, f"{layer.name} is a {layer.kind}, where a ResNet has {wanted}")

    def _check_pooling(self, layer: Layer) -> None:
        if layer.kind == "GlobalAveragePooling2D":
            return
        shape = self.network.input_shape
        size = shape[1] if len(shape) == 4 else None
        whole = None if size is None else (-(-size // _STRIDE),) * 2
        if layer.kind != "AveragePooling2D" or pair_of(layer.config["pool_size"]) != whole:
            raise self._unexpected(layer)

    def _add_dense(self, layer: Layer) -> None:
        values = self.tensors(layer)
        weight = np.ascontiguousarray(np.asarray(values["kernel"], np.float32).T)
        bias = np.asarray(values.get("bias", np.zeros(len(weight))), np.float32)
        if self.pending is not None:
            scale, shift = self.pending
            exact = weight.astype(np.float64)
            weight = (exact * scale).astype(np.float32)
            bias = (bias + exact @ shift).astype(np.float32)
            self.pending = None
        self.layers.append(self._activated(Dense(weight=weight, bias=bias), layer))

    def _add_norm(self, norm: Layer) -> None:
        if self.pending is not None:
            raise refuse(self.path, f"{norm.name} follows another BatchNorm in the head")
        gamma, beta, mean, variance = statistics_of(norm, self.tensors, self.path)
        scale = gamma / np.sqrt(variance + float(norm.config["epsilon"]))
        shift = beta - mean * scale
        if not self.layers or self.layers[-1].activation != "linear":
            self.pending = scale, shift
            return
        last = self.layers[-1]
        self.layers[-1] = Dense(
            weight=(last.weight * scale[:, None]).astype(np.float32),
            bias=(last.bias * scale + shift).astype(np.float32),
        )

    def _activated(self, dense: Dense, layer: Layer) -> Dense:
        if layer.kind == "ReLU":
            name = "relu" if is_relu(layer) else "ReLU with a limit"
        elif layer.kind == "Softmax":
            name = "softmax"
        else:
            name = activation_of(layer.config.get("activation"))
        if name == "linear":
            return dense
        if name not in _ACTIVATIONS or dense.activation != "linear":
            raise refuse(
                self.path, f"the activation {name} of {layer.name} is not supported in a head"
            )
        return replace(dense, activation=name)

    def as_logits(self) -> list[Dense]:
        """The layers, without the softmax at the end."""
        if not self.layers:
            raise refuse(
                self.path,
                "the model has no classifier (include_top=False)",
                "add GlobalAveragePooling2D and Dense, train them, and save the whole model",
            )
        *hidden, last = self.layers
        ends = _SOFTMAX | {"sigmoid"}
        if self.pending is not None or any(dense.activation in ends for dense in hidden):
            raise refuse(self.path, "layers with weights follow the softmax or sigmoid")
        if last.activation == "sigmoid" and len(last.bias) == 1:
            last = _two_classes(last)
        if last.activation not in _SOFTMAX | {"linear"}:
            raise refuse(self.path, f"the last layer ends in {last.activation}, not in a softmax")
        if len(last.bias) < 2:
            raise refuse(
                self.path,
                "the model has one output without a sigmoid, which may be a regression",
                "for two classes, set the last layer's activation to 'sigmoid' and save the model again",
            )
        return [*hidden, replace(last, activation="linear")]


def _two_classes(dense: Dense) -> Dense:
    """Two logits for one sigmoid: ``softmax([0, z]) = [1 - sigmoid(z), sigmoid(z)]``."""
    return Dense(
        weight=np.concatenate([np.zeros_like(dense.weight), dense.weight]),
        bias=np.concatenate([np.zeros_like(dense.bias), dense.bias]),
    )
