"""The structure of a Keras model, read from its configuration: a flat list of layers.

Nested models are expanded. Nothing is built or executed: a layer is a class name with settings, and
classes that are not in `KNOWN` are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import CheckpointError

__all__ = ["KNOWN", "Layer", "Network", "Operand", "read_network", "refuse"]

INACTIVE = frozenset(
    {
        "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
        "RandomBrightness", "RandomContrast", "RandomCrop", "RandomFlip", "RandomHeight",
        "RandomHue", "RandomRotation", "RandomSaturation", "RandomTranslation", "RandomWidth",
        "RandomZoom", "SpatialDropout2D",
    }
)  # fmt: skip
"""Layers that pass their input on at inference."""
KNOWN = frozenset(
    {
        "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Conv2D", "Dense", "Divide",
        "Flatten", "GetItem", "GlobalAveragePooling2D", "MaxPooling2D", "Multiply", "Normalization",
        "ReLU", "Rescaling", "Resizing", "SlicingOpLambda", "Softmax", "Stack", "Subtract",
        "SyncBatchNormalization", "TFOpLambda", "TrueDivide", "ZeroPadding2D",
    }
)  # fmt: skip
"""Layers and operations that are understood; each is checked further where it is used."""
_MODELS = frozenset({"Functional", "Model", "Sequential"})
_DEEPEST = 8
_ROUTE = "export it with Keras: model.export('model.onnx', format='onnx'); resnet-opt build takes ONNX files"


def refuse(path: Path, reason: str, hint: str = _ROUTE) -> CheckpointError:
    """An error about a model that is not supported; the hint names the way over ONNX."""
    return CheckpointError(f"{path}: {reason}", hint=hint)


@dataclass(frozen=True)
class Operand:
    """An input of a layer that another layer computes."""

    layer: str


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the flattened model.

    Attributes:
        name: Unique name; layers in nested models have its name before theirs (``resnet50/conv1_conv``).
        kind: The class.
        config: Its settings.
        operands: Positional inputs: `Operand`, arrays, numbers, slices, or lists of them.
        keywords: Keyword inputs of operations that are not layers.
        place: Where Keras 3 stores the weights: class names with a count, for each level.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    operands: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    place: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[str]:
        """Names of the layers that it reads, in order."""
        return [o.layer for o in _operands([*self.operands, *self.keywords.values()])]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model with one input and one output.

    Attributes:
        layers: Layers by name, each after those that it reads; without the input.
        input: Name of the input.
        input_shape: N x H x W x C as configured; ``None`` where dynamic; empty if not stated.
        output: Name of the layer whose output is the model's.
    """

    layers: Mapping[str, Layer]
    input: str
    input_shape: tuple[int | None, ...]
    output: str

    def readers(self) -> dict[str, list[Layer]]:
        """The layers that read each tensor, by the name of the layer that computes it."""
        found: dict[str, list[Layer]] = {name: [] for name in (self.input, *self.layers)}
        for layer in self.layers.values():
            for name in layer.inputs:
                found[name].append(layer)
        return found


def read_network(config: Mapping[str, Any], path: Path) -> Network:
    """Flatten a model's configuration.

    Layers that do nothing at inference (Dropout, augmentation) are left out.

    Args:
        config: The content of ``config.json``, or the attribute ``model_config``.
        path: The file, for messages.

    Raises:
        CheckpointError: The model is a custom class, has several inputs or outputs, contains a layer
            that is not understood or would run code, or the configuration is damaged.
    """
    reader = _Reader(path)
    try:
        output = reader.read_model(config, None, (), ())
        layers = _without_inactive(reader.layers, output)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its configuration is damaged or from an unknown version of Keras "
            f"({type(error).__name__}: {error})",
            hint="save the model again with model.save('model.keras')",
        ) from error
    kept, last = layers
    return Network(
        layers=kept,
        input=_Reader.INPUT,
        input_shape=tuple(reader.input_shape),
        output=last,
    )


def _without_inactive(layers: dict[str, Layer], output: str) -> tuple[dict[str, Layer], str]:
    """Drop layers that pass their input on, and layers that the output does not depend on."""
    passed = {x.name: x.inputs[0] for x in layers.values() if x.kind in INACTIVE | {"Identity"}}

    def source(name: str) -> str:
        while name in passed:
            name = passed[name]
        return name

    def renamed(value: Any) -> Any:
        if isinstance(value, Operand):
            return Operand(source(value.layer))
        return [renamed(v) for v in value] if isinstance(value, list) else value

    kept = {
        name: Layer(
            name=name,
            kind=x.kind,
            config=x.config,
            operands=tuple(renamed(v) for v in x.operands),
            keywords={k: renamed(v) for k, v in x.keywords.items()},
            place=x.place,
        )
        for name, x in layers.items()
        if name not in passed
    }
    needed, queue = set(), [source(output)]
    while queue:
        name = queue.pop()
        if name in kept and name not in needed:
            needed.add(name)
            queue += kept[name].inputs
    return {name: x for name, x in kept.items() if name in needed}, source(output)


def _operands(values: Any) -> Iterator[Operand]:
    for value in values:
        if isinstance(value, Operand):
            yield value
        elif isinstance(value, list):
            yield from _operands(value)


class _Reader:
    """Collects the layers of a model and the models nested in it."""

    INPUT = "input"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layers: dict[str, Layer] = {}
        self.input_shape: list[int | None] = []

    def read_model(
        self, entry: Mapping[str, Any], source: str | None, names: tuple[str, ...],
        place: tuple[str, ...],
    ) -> str:  # fmt: skip
        """Read a model.

        Args:
            entry: Its class and settings.
            source: The layer that a nested model reads; ``None`` for the outermost.
            names: Names of the models that it is nested in.
            place: Where their weights are stored; see `Layer`.

        Returns:
            The layer that computes its output.
        """
        kind = str(entry["class_name"])
        if kind not in _MODELS or _is_foreign(entry):
            raise refuse(
                self.path,
                f"the model is the custom class {kind}, whose code is not in the file",
                "build a Functional model around it, or export it with Keras: "
                "model.export('model.onnx', format='onnx')",
            )
        if len(names) > _DEEPEST:
            raise refuse(self.path, f"models are nested more than {_DEEPEST} deep")
        config = entry["config"]
        if isinstance(config, list):  # Sequential in the oldest files
            config = {"layers": config}
        _check_dtype(config, "the model", self.path)
        counts: dict[str, int] = {}
        local: dict[str, str] = {}
        previous = source
        for layer in config["layers"]:
            name = str(layer.get("name") or layer["config"]["name"])
            counted = _counted(str(layer["class_name"]), counts)
            if kind == "Sequential":
                operands: tuple[Any, ...] = () if previous is None else (Operand(previous),)
                previous = self._add(layer, operands, {}, (*names, name), (*place, counted))
                local[name] = previous
                continue
            if layer["class_name"] == "InputLayer":
                local[name] = self._input(layer, source)
                continue
            operands, keywords = self._call(layer, name, local)
            local[name] = self._add(layer, operands, keywords, (*names, name), (*place, counted))
        if kind == "Sequential":
            if previous is None:
                raise refuse(self.path, "the model has no layers")
            return previous
        self._one(config, "input_layers")
        return local[self._one(config, "output_layers")]

    def _one(self, config: Mapping[str, Any], key: str) -> str:
        ends = config[key]
        if isinstance(ends, dict):
            ends = list(ends.values())
        if ends and isinstance(ends[0], str):
            ends = [ends]
        if len(ends) != 1:
            what = key.partition("_")[0]
            raise refuse(self.path, f"the model has {len(ends)} {what}s; a classifier has one")
        return str(ends[0][0])

    def _input(self, layer: Mapping[str, Any], source: str | None) -> str:
        if source is not None:
            return source
        config = layer["config"]
        shape = config.get("batch_shape") or config.get("batch_input_shape") or ()
        self.input_shape = [None if size is None else int(size) for size in shape]
        return self.INPUT

    def _add(
        self, layer: Mapping[str, Any], operands: tuple[Any, ...], keywords: dict[str, Any],
        names: tuple[str, ...], place: tuple[str, ...],
    ) -> str:  # fmt: skip
        """Add a layer or the layers of a nested model; returns the one with the output."""
        kind, config, name = str(layer["class_name"]), layer["config"], "/".join(names)
        if kind == "InputLayer":  # in a Sequential
            source = next(_operands(operands), None)
            return self._input(layer, source.layer if source else None)
        if not operands and not self.input_shape:
            # The first layer of a Sequential without InputLayer states the shape.
            self.input_shape = list(config.get("batch_input_shape") or ())
        if not list(_operands([*operands, *keywords.values()])):
            operands = (Operand(self.INPUT),)
        if kind in _MODELS and not _is_foreign(layer):
            return self.read_model(layer, next(_operands(operands)).layer, names, place)
        _check_class(kind, name, layer, self.path)
        _check_dtype(config, name, self.path)
        if config.get("data_format") == "channels_first":
            raise refuse(
                self.path,
                f"{name} has data_format='channels_first'",
                "build the same model with data_format='channels_last', load these weights into it "
                "(kernels are stored alike) and save it",
            )
        self.layers[name] = Layer(
            name=name, kind=kind, config=config, operands=operands, keywords=keywords, place=place
        )
        return name

    def _call(
        self, layer: Mapping[str, Any], name: str, local: Mapping[str, str]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs of a layer of a Functional model."""
        nodes = layer["inbound_nodes"]
        if len(nodes) != 1:
            raise refuse(self.path, f"{name} is called {len(nodes)} times in the model, not once")
        (node,) = nodes
        if isinstance(node, dict):  # Keras 3
            keywords = {
                key: self._value(value, local)
                for key, value in node.get("kwargs", {}).items()
                if key not in {"training", "mask"}
            }
            return tuple(self._value(value, local) for value in node["args"]), keywords
        if node and isinstance(node[0], str):  # an operation of Keras 2 with one input
            node = [node]
        tensors = [Operand(local[str(call[0])]) for call in node]
        options = dict(node[0][3]) if len(node[0]) > 3 else {}
        extra = {
            key: self._value(value, local)
            for key, value in options.items()
            if key not in {"training", "mask", "name"}
        }
        operands = (tensors,) if len(tensors) > 1 else tuple(tensors)
        return operands, extra

    def _value(self, value: Any, local: Mapping[str, str]) -> Any:
        if isinstance(value, list):
            if len(value) == 4 and value[0] in local and isinstance(value[3], dict):
                return Operand(local[value[0]])  # a reference in Keras 2
            return [self._value(item, local) for item in value]
        if not isinstance(value, dict):
            return value
        kind, config = value.get("class_name"), value.get("config", {})
        if kind == "__keras_tensor__":
            return Operand(local[str(config["keras_history"][0])])
        if kind in {"__tensor__", "__numpy__"}:
            return np.asarray(config["value"], np.float64)
        if kind == "__slice__":
            return slice(config.get("start"), config.get("stop"), config.get("step"))
        return ... if kind == "__ellipsis__" else value


def _counted(kind: str, counts: dict[str, int]) -> str:
    """The name under which Keras 3 stores a layer: ``conv2d``, ``conv2d_1`` … within one model."""
    snake = re.sub(r"\W+", "", kind)
    snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", snake)
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
    count = counts.get(snake, -1) + 1
    counts[snake] = count
    return f"{snake}_{count}" if count else snake


def _is_foreign(layer: Mapping[str, Any]) -> bool:
    """Whether a class is the user's own: registered by a package, or not from Keras's modules."""
    module = str(layer.get("module") or "keras")
    package = str(layer.get("registered_name") or "").rpartition(">")[0]
    return module.partition(".")[0] not in {"keras", "tf_keras", "builtins"} or package not in {
        "",
        "keras",
        "Keras",
    }


def _check_class(kind: str, name: str, layer: Mapping[str, Any], path: Path) -> None:
    if kind == "Lambda":
        raise refuse(
            path,
            f"{name} is a Lambda layer, which holds Python code; nothing in a file is executed",
            "replace it by a Keras layer such as Rescaling, or export the model with Keras: "
            "model.export('model.onnx', format='onnx')",
        )
    if _is_foreign(layer):
        raise refuse(path, f"{name} is the custom layer {kind}, whose code is not in the file")
    if kind not in KNOWN and kind not in INACTIVE and kind != "Identity":
        raise refuse(path, f"{name} is a {kind}, which no ResNet has that this package builds")


def _check_dtype(config: Mapping[str, Any], name: str, path: Path) -> None:
    """Refuse policies that store weights in another type than float32; mixed ones store float32."""
    policy = config.get("dtype")
    while isinstance(policy, dict):
        settings = policy.get("config", {})
        policy = settings.get("name") or settings.get("mode") or settings.get("dtype")
    if policy not in {None, "float32", "mixed_float16", "mixed_bfloat16"}:
        raise refuse(
            path,
            f"{name} has the dtype policy {policy}, and a reference is float32",
            "keras.config.set_dtype_policy('float32'), build the model again, load its weights, save it",
        )
