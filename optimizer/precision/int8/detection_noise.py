"""Which outputs of a detector matter when ranges are chosen by the noise of the output.

Nearly all anchors see background, where only the sign of a very negative logit matters, and objects
are the rare tail that clipping hits first. The noise of each anchor is therefore weighted by the
largest class probability that the exact network gives it: all background together counts little, and
what decides about a detection counts fully.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.graphs.metadata import Metadata

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["output_weights"]

_BOX_VALUES = {"retinanet": 4, "fcos": 5}


def output_weights(model: ir.Model, reference: torch.Tensor) -> torch.Tensor | None:
    """Weight of each output value.

    Args:
        model: The graph.
        reference: Exact outputs: N x classes, or N x anchors x values of a detector.

    Returns:
        N x anchors x 1 for a detector; ``None`` if all outputs count the same.
    """
    detector = Metadata.of_model(model).detector
    if detector is None or reference.ndim != 3:
        return None
    logits = reference[..., _BOX_VALUES[detector["kind"]] :]
    return logits.amax(dim=2, keepdim=True).sigmoid()
