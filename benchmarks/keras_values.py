"""Weights and images that depend only on names and shapes, so that Keras and the tests make the same."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def values(layer: str, tensor: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The tensor of a layer: ``kernel``, ``bias``, ``gamma`` …, such that activations stay moderate."""
    rng = np.random.default_rng(zlib.crc32(f"{layer}/{tensor}".encode()))
    if tensor == "kernel":
        array = rng.standard_normal(shape, np.float32)
        return array * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    if tensor in {"moving_variance", "variance"}:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if tensor == "gamma":
        largest = 0.3 if layer.endswith("_3_bn") else 1.2
        return rng.uniform(0.1, largest, shape).astype(np.float32)
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def images(size: int, count: int = 3) -> NDArray[np.uint8]:
    """RGB images, N x size x size x 3."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
