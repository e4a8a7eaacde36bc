"""The normalization inside a Keras model, and that of ``keras.applications``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Preprocessing
from optimizer.errors import DataError
from optimizer.models.keras_graph import Layer, Network, refuse

__all__ = ["Pixels", "as_preprocessing", "caffe_preprocessing", "read_normalization"]

_CAFFE_MEAN = (103.939, 116.779, 123.68)
"""``keras.applications.resnet``: blue, green, red on the scale 0 to 255; no scaling."""
_ORDERS: dict[tuple[int, ...], str] = {(0, 1, 2): "RGB", (2, 1, 0): "BGR"}
Values = NDArray[np.float64]


def caffe_preprocessing(image_size: int) -> Preprocessing:
    """The preprocessing of ``keras.applications.resnet``: BGR, ImageNet's means, no scaling."""
    return Preprocessing(
        resize=round(image_size * 256 / 224),
        crop=image_size,
        color="BGR",
        mean=tuple(mean / 255 for mean in _CAFFE_MEAN),
        std=(1 / 255,) * 3,
    )


@dataclass(frozen=True)
class Pixels:
    """What a network sees of a pixel: ``scale * pixel[order] + offset``, one value per channel."""

    order: tuple[int, ...]
    scale: Values
    offset: Values


def read_normalization(
    network: Network, stem: str, tensors: Callable[[Layer], Mapping[str, Any]], path: Path
) -> Pixels | None:
    """Follow the pixels from the model's input to the tensor that the first convolution reads.

    Args:
        network: The model.
        stem: The layer whose output the stem reads, or the input.
        tensors: Reads the weights of a layer.
        path: The file, for messages.

    Returns:
        What happens to pixels of 0 to 255; ``None`` if nothing does.

    Raises:
        CheckpointError: A layer before the stem is neither a scaling nor an offset per channel.
    """
    start = Pixels((0, 1, 2), np.ones(3), np.zeros(3))
    known: dict[str, Pixels] = {network.input: start}
    for layer in network.layers.values():
        if stem in known:
            break
        if all(name in known for name in layer.inputs):
            known[layer.name] = _apply(layer, known, tensors, path)
    return None if stem == network.input else known[stem]


def as_preprocessing(pixels: Pixels, image_size: int, path: Path) -> Preprocessing:
    """Preprocessing that gives the network the same values.

    Raises:
        CheckpointError: The channels are mixed, or the values cannot be those of 8-bit images.
    """
    color = _ORDERS.get(pixels.order)
    if color is None:
        raise refuse(path, f"the model reorders the channels of its input to {pixels.order}")
    try:
        return Preprocessing(
            resize=round(image_size * 256 / 224),
            crop=image_size,
            color=color,
            mean=tuple(float(v) for v in -pixels.offset / (255 * pixels.scale)),
            std=tuple(float(v) for v in 1 / (255 * pixels.scale)),
        )
    except DataError as error:
        raise refuse(
            path, f"the normalization inside the model does not suit images: {error.message}"
        ) from error


def _apply(
    layer: Layer,
    known: Mapping[str, Pixels],
    tensors: Callable[[Layer], Mapping[str, Any]],
    path: Path,
) -> Pixels:
    inputs = [known[name] for name in layer.inputs]
    config, first = layer.config, inputs[0]
    if layer.kind == "Stack" and len(inputs) == 3:
        return _stacked(inputs)
    if layer.kind == "Rescaling":
        return _affine(first, config["scale"], config["offset"])
    if layer.kind == "Normalization" and not config.get("invert"):
        return _normalized(first, layer, tensors)
    if layer.kind == "GetItem":
        return _selected(first, layer.operands[1], layer, path)
    if layer.kind == "SlicingOpLambda":
        return _selected(first, _old_slices(layer.keywords["slice_spec"]), layer, path)
    if layer.kind == "Resizing":
        raise refuse(
            path,
            f"{layer.name} resizes images inside the model, and engines take them resized",
            "remove the Resizing layer from the model and save it again; the card states the resize",
        )
    constant = _constant(layer)
    if constant is not None:
        return _arithmetic(first, layer, constant, path)
    raise refuse(
        path,
        f"{layer.name} ({layer.kind}) stands before the first convolution and is not a "
        "normalization that preprocessing can express",
    )


def _affine(pixels: Pixels, scale: Any, offset: Any) -> Pixels:
    scale, offset = (np.asarray(v, np.float64).reshape(-1) for v in (scale, offset))
    return Pixels(pixels.order, pixels.scale * scale, pixels.offset * scale + offset)


def _stacked(planes: Sequence[Pixels]) -> Pixels:
    return Pixels(
        tuple(plane.order[0] for plane in planes),
        np.concatenate([plane.scale for plane in planes]),
        np.concatenate([plane.offset for plane in planes]),
    )


def _normalized(
    pixels: Pixels, layer: Layer, tensors: Callable[[Layer], Mapping[str, Any]]
) -> Pixels:
    mean, variance = layer.config.get("mean"), layer.config.get("variance")
    if mean is None or variance is None:  # adapted to data: stored as weights
        stored = tensors(layer)
        mean, variance = stored["mean"], stored["variance"]
    std = np.maximum(np.sqrt(np.asarray(variance, np.float64).reshape(-1)), 1e-7)
    return _affine(pixels, 1 / std, -np.asarray(mean, np.float64).reshape(-1) / std)


def _selected(pixels: Pixels, selection: Any, layer: Layer, path: Path) -> Pixels:
    """``x[..., 2]`` and ``x[..., ::-1]``."""
    if isinstance(selection, list) and len(selection) == 2 and selection[0] is ...:
        chosen = selection[1]
        if isinstance(chosen, int):
            chosen = slice(chosen, chosen + 1)
        if isinstance(chosen, slice):
            return Pixels(pixels.order[chosen], pixels.scale[chosen], pixels.offset[chosen])
    raise refuse(path, f"{layer.name} cuts its input, which preprocessing cannot express")


def _old_slices(spec: Any) -> list[Any]:
    """The slices of Keras 2, which are mappings."""
    return [
        slice(s.get("start"), s.get("stop"), s.get("step")) if isinstance(s, dict) else s
        for s in spec
    ]


def _constant(layer: Layer) -> Values | None:
    """The constant operand of an operation with one computed input."""
    values = [*layer.operands[1:], *layer.keywords.values()]
    for value in values:
        if isinstance(value, (int, float, list, np.ndarray)) and not isinstance(value, bool):
            try:
                constant = np.asarray(value, np.float64).reshape(-1)
            except (TypeError, ValueError):
                continue
            if constant.size in {1, 3}:
                return constant
    return None


_FUNCTIONS = {
    "nn.bias_add": "Add", "math.add": "Add", "__operators__.add": "Add",
    "math.subtract": "Subtract", "math.truediv": "Divide", "math.divide": "Divide",
    "math.multiply": "Multiply",
}  # fmt: skip
"""TensorFlow's functions in models of Keras 2."""


def _arithmetic(pixels: Pixels, layer: Layer, constant: Values, path: Path) -> Pixels:
    kind = layer.kind
    if kind == "TFOpLambda":
        kind = _FUNCTIONS.get(str(layer.config.get("function")), kind)
    if kind == "Add":
        return _affine(pixels, 1.0, constant)
    if kind == "Subtract":
        return _affine(pixels, 1.0, -constant)
    if kind == "Multiply":
        return _affine(pixels, constant, 0.0)
    if kind in {"Divide", "TrueDivide"}:
        return _affine(pixels, 1 / constant, 0.0)
    raise refuse(path, f"{layer.name} ({kind}) before the first convolution is not understood")
