"""Heads with hidden layers: Linear and ReLU, in turns, before the last layer.

The last layer keeps its names (``fc.weight``, ``fc.bias``), the hidden ones are ``fc.hidden.0``,
``fc.hidden.2`` and so on, so a checkpoint shows by its names what its head computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "build_head",
    "has_hidden_layers",
    "hidden_sizes",
    "load_hidden_layers",
    "without_hidden",
]

_PREFIX = "fc.hidden."
State = dict[str, "torch.Tensor"]


def build_head(in_features: int, hidden: Sequence[int], num_classes: int) -> nn.Linear:
    """The last layer of a network, with hidden layers before it.

    Args:
        in_features: Number of pooled features.
        hidden: Width of each hidden layer; empty for a plain linear layer.
        num_classes: Number of outputs.
    """
    from torch import nn

    if not hidden:
        return nn.Linear(in_features, num_classes)

    class HeadWithHiddenLayers(nn.Linear):
        """N x features to N x classes."""

        def __init__(self) -> None:
            super().__init__(hidden[-1], num_classes)
            layers: list[nn.Module] = []
            for before, width in zip((in_features, *hidden), hidden, strict=False):
                layers += [nn.Linear(before, width), nn.ReLU()]
            self.hidden = nn.Sequential(*layers)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward(self.hidden(features))

    return HeadWithHiddenLayers()


def hidden_sizes(module: nn.Module) -> tuple[int, ...]:
    """Widths of the hidden layers of a network; empty if it has none."""
    weights = [p for name, p in module.named_parameters() if _is_weight(name)]
    return tuple(int(weight.shape[0]) for weight in weights)


def has_hidden_layers(state: State) -> bool:
    """Whether weights have hidden layers before the last one."""
    return any(name.startswith(_PREFIX) for name in state)


def _is_weight(name: str) -> bool:
    return name.startswith(_PREFIX) and name.endswith(".weight")


def without_hidden(state: State, source: str) -> State:
    """The weights as if the pooled features went straight into the last layer.

    The last layer gets zeros of the shape that it would have, for checks of everything else.

    Raises:
        CheckpointError: The hidden layers do not fit each other.
    """
    weights = _weights(state)
    widths = [tuple(weight.shape) for weight in weights]
    last = tuple(state["fc.weight"].shape) if "fc.weight" in state else ()
    chain = [*widths, last]
    fits = all(len(shape) == 2 for shape in chain) and all(
        after[1] == before[0] for before, after in itertools.pairwise(chain)
    )
    if not fits:
        raise CheckpointError(
            f"the hidden layers of {source} do not fit each other: {', '.join(map(str, chain))}",
            hint="write the checkpoint again",
        )
    plain = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
    plain["fc.weight"] = state["fc.weight"].new_zeros((last[0], widths[0][1]))
    return plain


def load_hidden_layers(module: nn.Module, state: State) -> None:
    """Replace the last layer of a network by the head in ``state``, in FP32."""
    hidden = [int(weight.shape[0]) for weight in _weights(state)]
    features, classes = int(_weights(state)[0].shape[1]), int(state["fc.weight"].shape[0])
    head = build_head(features, hidden, classes)
    head.load_state_dict(
        {name[len("fc.") :]: tensor for name, tensor in state.items() if name.startswith("fc.")}
    )
    module.register_module("fc", head.eval())


def _weights(state: State) -> list[torch.Tensor]:
    """Weights of the hidden layers, from first to last."""
    numbered = {int(name.split(".")[2]): name for name in state if _is_weight(name)}
    return [state[numbered[number]] for number in sorted(numbered)]
