"""A trained network together with what must be known to use it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.data import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Model", "weights_digest"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The reference of everything that follows.

    Attributes:
        module: The network, FP32 on the CPU, in evaluation mode.
        arch: Its architecture, a torchvision name.
        classes: Class names in the order of the outputs; ``None`` if nobody said.
        num_classes: Outputs of the last layer.
        preprocessing: What images go through before the network sees them.
        source: Where the weights come from, in words.
        sha256: Digest of the weights; see `weights_digest`.
        preprocessing_assumed: The weights came without preprocessing and ImageNet's classic one
            (256, 224, bilinear) was taken. Say so to the reader: a wrong one costs accuracy.
        expected_top1: Accuracy these weights are published with on the images they are published
            for, a fraction of one; ``None`` if nobody published any.
    """

    module: nn.Module
    arch: str
    classes: tuple[str, ...] | None
    num_classes: int
    preprocessing: Preprocessing
    source: str
    sha256: str
    preprocessing_assumed: bool = False
    expected_top1: float | None = None

    @property
    def image_size(self) -> int:
        """Side of the network's input, pixels."""
        return self.preprocessing.image_size


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Sha256 over names, types, shapes and bytes of a state dict.

    Equal weights have equal digests whatever file they came from. ``num_batches_tracked`` counts
    training steps and decides nothing; some files lack it, so it is left out.
    """
    hasher = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        hasher.update(tensor.numpy().tobytes())
    return hasher.hexdigest()
