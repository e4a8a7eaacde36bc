"""A trained network with its classes, preprocessing and origin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.data import Preprocessing
from optimizer.errors import CheckpointError
from optimizer.models.architectures import ARCHITECTURES, detector_parts, full_widths
from optimizer.models.detector_spec import DetectorSpec
from optimizer.models.heads import outputs_of
from optimizer.models.narrow import Widths, widths_of_shapes

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Model", "weights_digest"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network, the reference for all exported graphs and engines.

    Attributes:
        module: The network, FP32 on the CPU, in evaluation mode.
        arch: Its architecture, a name of torchvision's form.
        classes: Class names in the order of the outputs; ``None`` if unknown.
        num_classes: Number of classes; 2 if the last layer has one output, a sigmoid.
        preprocessing: Preprocessing that the network expects.
        source: Readable description of where the weights come from.
        sha256: Digest of the weights; see `weights_digest`.
        preprocessing_assumed: Whether the weights came without preprocessing and ImageNet's
            standard one (256, 224, bilinear) was assumed. Users must be warned, because the wrong
            one costs accuracy.
        expected_top1: Published accuracy of these weights, a fraction of one; ``None`` if there is
            none.
        pruned_from: Digest of the weights that these were pruned from; ``None`` if they were not.
        remarks: What the user should know about how the weights were read: other copies in the
            file, tensors that were left out.
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
    pruned_from: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Outputs of the last layer: 1 for a sigmoid, else the number of classes."""
        return outputs_of(self.module) if self.detector is None else self.num_classes

    @property
    def widths(self) -> Widths:
        """Channels and blocks of a classifier.

        Raises:
            CheckpointError: The network is a detector.
        """
        widths = self._found_widths()
        if widths is None:
            raise CheckpointError(f"{self.source} is a detector, not a classifier")
        return widths

    @property
    def narrow(self) -> Widths | None:
        """The widths if they differ from the architecture's; ``None`` for a whole network."""
        widths = self._found_widths()
        if widths is None or self.arch not in ARCHITECTURES or widths == full_widths(self.arch):
            return None
        return widths

    def _found_widths(self) -> Widths | None:
        state = self.module.state_dict()
        return widths_of_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})

    @property
    def channels(self) -> int:
        """Number of channels of the network's images."""
        return self.preprocessing.channels

    @property
    def image_size(self) -> int:
        """Side of the network's input, pixels."""
        return self.preprocessing.image_size

    @property
    def detector(self) -> DetectorSpec | None:
        """How the outputs become boxes; ``None`` for a classifier."""
        parts = detector_parts(self.arch)
        return parts and DetectorSpec.of(parts[0], self.image_size, self.num_classes)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a state dict.

    Equal weights have equal digests, whichever file they came from. ``num_batches_tracked`` only
    counts training steps and is missing from some files, so it is left out.
    """
    hasher = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        hasher.update(tensor.numpy().tobytes())
    return hasher.hexdigest()
