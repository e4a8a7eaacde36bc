"""The normalization inside a Keras model, as preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.data import Preprocessing
from optimizer.errors import CheckpointError
from optimizer.models.keras_graph import Layer, Network, Operand
from optimizer.models.keras_pixels import as_preprocessing, read_normalization

Step = tuple[str, dict[str, Any], tuple[Any, ...], dict[str, Any]]
PIXELS = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3), np.uint8)
FLIP = [..., slice(None, None, -1)]
OLD_FLIP = [..., {"start": None, "stop": None, "step": -1}]


def step(kind: str, *operands: Any, keywords: dict[str, Any] | None = None, **config: Any) -> Step:
    return kind, config, operands, keywords or {}


def preprocessing(*steps: Step, weights: dict[str, Any] | None = None) -> Preprocessing:
    layers, source = {}, "input"
    for index, (kind, config, operands, keywords) in enumerate(steps):
        name = f"step_{index}"
        layers[name] = Layer(
            name=name,
            kind=kind,
            config=config,
            operands=(Operand(source), *operands),
            keywords=keywords,
        )
        source = name
    network = Network(layers=layers, input="input", input_shape=(), output=source)
    path = Path("model.keras")
    pixels = read_normalization(network, source, lambda _layer: weights or {}, path)
    assert pixels is not None
    return as_preprocessing(pixels, 32, path)


def applied(found: Preprocessing) -> np.ndarray:
    """What the network sees of the pixels, channels last."""
    pixels = PIXELS if found.color == "RGB" else np.ascontiguousarray(PIXELS[..., ::-1])
    return found.normalize(pixels).transpose(0, 2, 3, 1)


X = PIXELS.astype(np.float64)
MEAN, VARIANCE = np.array([120.0, 110, 100]), np.array([50.0, 60, 70]) ** 2
CASES: dict[str, tuple[list[Step], np.ndarray]] = {
    "rescaling": ([step("Rescaling", scale=1 / 127.5, offset=-1)], X / 127.5 - 1),
    "two": (
        [
            step("Rescaling", scale=1 / 255, offset=0.0),
            step("Normalization", mean=[0.5], variance=[0.04]),
        ],
        (X / 255 - 0.5) / 0.2,
    ),
    "channels": (
        [step("Normalization", mean=MEAN.tolist(), variance=VARIANCE.tolist())],
        (X - MEAN) / np.sqrt(VARIANCE),
    ),
    "flip, add": ([step("GetItem", FLIP), step("Add", -MEAN)], X[..., ::-1] - MEAN),
    "keras 2": (
        [
            step("SlicingOpLambda", keywords={"slice_spec": OLD_FLIP}),
            step(
                "TFOpLambda",
                function="nn.bias_add",
                keywords={"bias": (-MEAN).tolist(), "data_format": "NHWC"},
            ),
        ],
        X[..., ::-1] - MEAN,
    ),
    "arithmetic": (
        [step("TrueDivide", 127.5), step("Subtract", 1.0), step("Multiply", 2.0)],
        (X / 127.5 - 1) * 2,
    ),
    "keras 2 arithmetic": (
        [
            step("TFOpLambda", function="math.truediv", keywords={"y": 127.5}),
            step("TFOpLambda", function="math.subtract", keywords={"y": 1.0}),
        ],
        X / 127.5 - 1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_network_sees_the_same_values(case: str) -> None:
    steps, expected = CASES[case]
    assert np.allclose(applied(preprocessing(*steps)), expected, rtol=1e-5, atol=1e-4)


def test_values_that_were_adapted_to_data_are_weights() -> None:
    weights = {"mean": MEAN.reshape(1, 1, 1, 3), "variance": VARIANCE.reshape(1, 1, 1, 3)}
    found = preprocessing(step("Normalization"), weights=weights)
    assert np.allclose(applied(found), (X - MEAN) / np.sqrt(VARIANCE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([step("Resizing", height=32, width=32)], "resizes images inside the model"),
        ([step("Flatten")], "is not a normalization that preprocessing can express"),
        ([step("GetItem", [..., slice(0, 2)])], "reorders the channels"),
        ([step("GetItem", [0])], "cuts its input"),
        ([step("Rescaling", scale=-1.0, offset=0.0)], "does not suit images"),
        ([step("TFOpLambda", function="math.pow", keywords={"y": 2.0})], "is not understood"),
    ],
)
def test_other_layers_before_the_stem_are_refused(steps: list[Step], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        preprocessing(*steps)
