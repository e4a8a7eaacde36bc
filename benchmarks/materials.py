"""Models shared by several benchmarks: graphs with calibration statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import optimizer

__all__ = ["Material", "digits_resnet50", "random_resnet50"]


@dataclass(frozen=True)
class Material:
    """A model, ready to be built.

    Attributes:
        name: Name in reports.
        checkpoint, graph, statistics: Files of the model.
        image_size: Height and width of the images in pixels.
        data: Labelled test images; ``None`` for random weights, whose accuracy is meaningless.
    """

    name: str
    checkpoint: Path
    graph: Path
    statistics: Path
    image_size: int
    data: str | None = None


def random_resnet50(folder: Path) -> Material:
    """ResNet-50 at 224 px with seeded random weights, calibrated on noise; for speed only."""
    from optimizer.models import load_model, save_checkpoint

    checkpoint = folder / "model.safetensors"
    save_checkpoint(load_model("resnet50:random"), checkpoint, details={})
    graph = optimizer.export(str(checkpoint), folder / "model.onnx").path
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 224, 224, 3), np.uint8)
    np.savez(folder / "noise.npz", images=images, labels=np.arange(32) % 10)
    stats = optimizer.calibrate(
        graph, folder / "stats.npz", calib=str(folder / "noise.npz"), calib_images=32
    ).path
    return Material("ResNet-50, random weights, 224 px", checkpoint, graph, stats, 224)


def digits_resnet50(checkpoint: Path, folder: Path, *, calib_images: int = 256) -> Material:
    """A network trained on the digits at 32 px."""
    graph = optimizer.export(str(checkpoint), folder / "digits.onnx").path
    stats = optimizer.calibrate(
        graph, folder / "digits.stats.npz", calib="digits:train", calib_images=calib_images
    ).path
    return Material("ResNet-50, digits, 32 px", checkpoint, graph, stats, 32, "digits:test")
