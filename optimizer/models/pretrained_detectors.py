"""torchvision's published weights of detectors, and the preprocessing of detectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from optimizer.data import Preprocessing
from optimizer.errors import CheckpointError
from optimizer.models.detector_weights import detector_state, fit_detector
from optimizer.models.model import Model, weights_digest
from optimizer.models.pretrained import Published, download
from optimizer.models.weights import read_content

if TYPE_CHECKING:
    import torch

__all__ = ["detection_preprocessing", "load_torchvision_detector"]

_DETECTION_SIZE = 800
"""torchvision resizes the shorter side to 800 pixels; a letterbox has one size for both sides."""


def detection_preprocessing(given: Preprocessing | None) -> Preprocessing:
    """The preprocessing of a detector: a letterbox with the normalization that is given."""
    if given is None:
        return Preprocessing.detection(_DETECTION_SIZE)
    return replace(given, resize=given.crop, fit="letterbox")


def load_torchvision_detector(arch: str, weights: str) -> Model:
    """Load torchvision's published weights of a detector, downloading them if needed.

    Args:
        arch: One of `DETECTORS`.
        weights: ``COCO_V1`` or ``DEFAULT``.

    Raises:
        CheckpointError: There are no weights of this name, or the downloaded file is damaged.
        EnvironmentFault: The weights are not cached and cannot be downloaded.
    """
    from torchvision.models import get_model_weights, list_models

    names = list(get_model_weights(arch).__members__) if arch in list_models() else []
    if weights not in names:
        forms = [f"{arch}:{name}" for name in names] + [f"{arch}:random"]
        raise CheckpointError(
            f"torchvision has no weights {weights!r} for {arch}",
            hint=f"use {' or '.join(forms)}, or train it: resnet-opt train --arch {arch}",
        )
    chosen = get_model_weights(arch)[weights]
    published = Published(
        name=f"{arch}:{chosen.name}",
        arch=arch,
        url=chosen.url,
        digest_prefix=Path(urlparse(chosen.url).path).stem.rpartition("-")[2],
        classes=tuple(chosen.meta["categories"]),
        preprocessing=Preprocessing.detection(_DETECTION_SIZE),
        top1=None,
    )
    state = dict(detector_state(read_content(download(published))) or {})
    if arch == "retinanet_resnet50_fpn" and chosen.name == "COCO_V1":
        state = _without_epsilon(state)
    module, _, num_classes = fit_detector(state, arch, published.name)
    return Model(
        module=module,
        arch=arch,
        classes=published.classes,
        num_classes=num_classes,
        preprocessing=published.preprocessing,
        source=published.name,
        sha256=weights_digest(module.state_dict()),
    )


def _without_epsilon(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scale BatchNorm's weights so that epsilon 1e-5 gives what epsilon 0 gave in training.

    torchvision sets epsilon to 0 for these weights, which a state dict does not tell.
    """
    scaled = dict(state)
    for name, variance in state.items():
        if name.endswith(".running_var"):
            weight = name.removesuffix("running_var") + "weight"
            scaled[weight] = state[weight] * ((variance + 1e-5) / variance).sqrt()
    return scaled
