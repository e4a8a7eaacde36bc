"""Change which layers encodings keep in high precision, without recomputing ranges and scales.

This changes the list itself, and tensors after a ReLU that can no longer be shifted because a kept
layer reads them; those have 127 instead of 255 levels over the same range. Biases are not changed:
correct them afterwards (`correction`).
Not handled: fewer kept layers than the encodings were computed with. Tensors that could be shifted
again are not shifted, and groups that were not equalized stay so.
"""

from __future__ import annotations

from collections.abc import Collection

from optimizer.graphs.topology import Topology
from optimizer.precision.int8.encodings import Encodings, TensorEncoding, stored_scale
from optimizer.precision.int8.shift import shiftable
from optimizer.targets.rules import TargetRules

__all__ = ["with_kept_layers"]


def with_kept_layers(
    encodings: Encodings, keep: Collection[str], topology: Topology, rules: TargetRules
) -> Encodings:
    """The encodings with exactly these layers in high precision.

    Args:
        encodings: Encodings of the graph for the target; not modified.
        keep: Weighted layers, including those that the encodings keep already.
        topology: The FP32 graph.
        rules: The target's rules.

    Raises:
        UsageError: The graph does not have one of the layers.
    """
    names = topology.check_layers(keep)
    allowed = shiftable(topology, rules, names)

    def adapted(name: str, tensor: TensorEncoding) -> TensorEncoding:
        if not tensor.shifted or name in allowed:
            return tensor
        scale = stored_scale(tensor.scale * 255 / 127, rules)
        return tensor.model_copy(update={"shifted": False, "scale": scale})

    tensors = {name: adapted(name, tensor) for name, tensor in encodings.tensors.items()}
    return encodings.model_copy(update={"keep": list(names), "tensors": tensors})
