"""Encodings with other layers in high precision, without computing ranges and scales again.

What changes: the list itself, and tensors after a ReLU that may no longer be stored around their
middle because a layer that is kept reads them; those go from 255 levels to 127 over the same range.
Biases are left as they are: correct them afterwards (`correction`).
Not handled: fewer kept layers than the encodings were computed with. A tensor that could be shifted
again is not, and groups that were not equalized stay so.
"""

from __future__ import annotations

from collections.abc import Collection

from optimizer.graphs.topology import Topology
from optimizer.precision.int8.encodings import Encodings, TensorEncoding, stored_scale
from optimizer.precision.int8.shift import shiftable
from optimizer.targets.rules import TargetRules

__all__ = ["keeping"]


def keeping(
    encodings: Encodings, keep: Collection[str], topology: Topology, rules: TargetRules
) -> Encodings:
    """The encodings with exactly these layers in high precision.

    Args:
        encodings: Computed for the graph and target; not changed.
        keep: Weighted layers, with those that the encodings keep already.
        topology: The FP32 graph.
        rules: The target's rules.

    Raises:
        UsageError: A layer that the graph does not have.
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
