"""Heads of several fully connected layers, with activations between them.

The last layer keeps its names (``fc.weight``, ``fc.bias``), the hidden ones are ``fc.hidden.0``,
``fc.hidden.2`` and so on, so a checkpoint shows by its names what its head computes, if a ReLU follows
each hidden layer as `train --hidden-layers` writes it. Other activations, which Keras models have, are
stated by the checkpoint's header.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "ACTIVATIONS",
    "build_head",
    "from_sequential",
    "has_hidden_layers",
    "hidden_sizes",
    "layered_state",
    "load_hidden_layers",
    "outputs_of",
    "set_activations",
    "stated_activations",
    "without_hidden",
]

ACTIVATIONS = {"relu": "ReLU", "tanh": "Tanh", "linear": "Identity"}
"""What may follow a hidden layer, as modules of PyTorch."""
_PREFIX = "fc.hidden."
State = dict[str, "torch.Tensor"]


def build_head(in_features: int, hidden: Sequence[int], num_classes: int) -> nn.Linear:
    """The last layer of a network, with hidden layers before it and a ReLU after each of those.

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


def set_activations(module: nn.Module, activations: Sequence[str], source: str) -> None:
    """Replace what follows each hidden layer of a network.

    Args:
        module: The network.
        activations: A key of `ACTIVATIONS` for each hidden layer.
        source: Origin of the weights, for messages.

    Raises:
        CheckpointError: There is another number of hidden layers, or an unknown activation.
    """
    from torch import nn

    sizes = hidden_sizes(module)
    unknown = next((name for name in activations if name not in ACTIVATIONS), None)
    if unknown is not None or len(sizes) != len(activations):
        raise CheckpointError(
            f"{source} states the activations {', '.join(activations)} for {len(sizes)} hidden layers",
            hint="write the checkpoint again",
        )
    for number, name in enumerate(activations):
        hidden = module.get_submodule("fc.hidden")
        hidden.register_module(str(2 * number + 1), getattr(nn, ACTIVATIONS[name])())


def stated_activations(module: nn.Module) -> list[str] | None:
    """What follows each hidden layer, where a checkpoint has to state it; ``None`` if it is a ReLU."""
    names = {kind: name for name, kind in ACTIVATIONS.items()}
    count = len(hidden_sizes(module))
    parts = [module.get_submodule(f"{_PREFIX}{2 * number + 1}") for number in range(count)]
    found = [names[type(part).__name__] for part in parts]
    return found if set(found) - {"relu"} else None


def outputs_of(module: nn.Module) -> int:
    """Number of outputs of a network's last layer."""
    return int(module.get_parameter("fc.weight").shape[0])


def hidden_sizes(module: nn.Module) -> tuple[int, ...]:
    """Widths of the hidden layers of a network; empty if it has none."""
    weights = [p for name, p in module.named_parameters() if _is_weight(name)]
    return tuple(int(weight.shape[0]) for weight in weights)


def has_hidden_layers(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether weights have hidden layers before the last one."""
    return any(name.startswith(_PREFIX) for name in state)


def _is_weight(name: str) -> bool:
    return name.startswith(_PREFIX) and name.endswith(".weight")


def layered_state(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> State:
    """Weight and bias of fully connected layers, first to last, by the names of a head."""
    names = [*(f"{_PREFIX}{2 * number}" for number in range(len(layers) - 1)), "fc"]
    state: State = {}
    for name, (weight, bias) in zip(names, layers, strict=True):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return state


def from_sequential(
    state: Mapping[str, torch.Tensor], description: Sequence[str], source: str
) -> tuple[State, list[str]]:
    """Read the head of an older checkpoint, a Sequential whose parts its header lists.

    Args:
        state: Tensors by name; ``fc.0.weight`` is the first layer's.
        description: Its parts in order: ``linear`` for a layer, or an activation.
        source: Origin of the weights, for messages.

    Returns:
        The state with the names of this module, and what follows each hidden layer.

    Raises:
        CheckpointError: The tensors are not those of the description.
    """
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []
    activations: list[str] = []
    for index, part in enumerate(description):
        if part == "linear":
            names = (f"fc.{index}.weight", f"fc.{index}.bias")
            if any(name not in state for name in names):
                raise CheckpointError(f"{source}: its card lists a head that has no {names[0]}")
            layers.append((state[names[0]], state[names[1]]))
            activations.append("linear")
        elif part in ACTIVATIONS and activations:
            activations[-1] = part
        else:
            raise CheckpointError(f"{source}: its card lists an unknown part of the head, {part!r}")
    if not layers:
        raise CheckpointError(f"{source}: its card lists a head without layers")
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    return body | layered_state(layers), activations[:-1]


def without_hidden(state: Mapping[str, torch.Tensor], source: str) -> State:
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


def load_hidden_layers(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Replace the last layer of a network by the head in ``state``, in FP32."""
    hidden = [int(weight.shape[0]) for weight in _weights(state)]
    features, classes = int(_weights(state)[0].shape[1]), int(state["fc.weight"].shape[0])
    head = build_head(features, hidden, classes)
    head.load_state_dict(
        {name[len("fc.") :]: tensor for name, tensor in state.items() if name.startswith("fc.")}
    )
    module.register_module("fc", head.eval())


def _weights(state: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Weights of the hidden layers, from first to last."""
    numbered = {int(name.split(".")[2]): name for name in state if _is_weight(name)}
    return [state[numbered[number]] for number in sorted(numbered)]
