"""Heads of several fully connected layers with activations between them.

Weights do not show what is between two layers, so only sources that state it have such heads: Keras
models, and checkpoints of this package that were made from one. In the network the head is a
Sequential in the place of torchvision's ``fc``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "ACTIVATIONS",
    "build_head",
    "describe_head",
    "outputs_of",
    "replace_head",
    "without_head",
]

ACTIVATIONS = {"relu": "ReLU", "tanh": "Tanh"}
"""Activations between the layers, as modules of PyTorch."""
State = dict[str, "torch.Tensor"]


def build_head(
    weights: Sequence[tuple[torch.Tensor, torch.Tensor]], activations: Sequence[str]
) -> nn.Module:
    """A Sequential of fully connected layers.

    Args:
        weights: Weight (outputs x inputs) and bias of each layer, float32.
        activations: What follows each layer: ``linear``, or one of `ACTIVATIONS`.
    """
    from torch import nn

    modules: list[nn.Module] = []
    for (weight, bias), activation in zip(weights, activations, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        modules.append(linear)
        if activation != "linear":
            modules.append(getattr(nn, ACTIVATIONS[activation])())
    return nn.Sequential(*modules).eval()


def describe_head(module: nn.Module) -> list[str] | None:
    """The modules of a head in order; ``None`` for a single fully connected layer, or a detector."""
    from torch import nn

    head = getattr(module, "fc", None)
    if head is None or isinstance(head, nn.Linear):
        return None
    names = {name: activation for activation, name in ACTIVATIONS.items()}
    return [names.get(type(part).__name__, "linear") for part in head.children()]


def outputs_of(module: nn.Module) -> int:
    """Number of outputs of a network's last layer."""
    from torch import nn

    head = module.get_submodule("fc")
    last = head if isinstance(head, nn.Linear) else list(head.children())[-1]
    linear = last if isinstance(last, nn.Linear) else list(head.children())[-2]
    assert isinstance(linear, nn.Linear)
    return linear.out_features


def replace_head(module: nn.Module, head: nn.Module | None) -> None:
    """Put a head into a network, unless it is ``None``."""
    if head is not None:
        module.register_module("fc", head)


def without_head(
    state: Mapping[str, torch.Tensor], description: Sequence[str] | None, source: str
) -> tuple[State, nn.Module | None]:
    """Take a head of several layers out of a state dict.

    Args:
        state: Tensors by name.
        description: As written by `describe_head`; ``None`` for a single layer.
        source: Origin of the weights, for messages.

    Returns:
        The state with a single layer in the head's place, and the head; the state as it is and
        ``None`` if the head is a single layer.

    Raises:
        CheckpointError: The tensors are not those of the description.
    """
    if description is None:
        return dict(state), None
    pairs, activations = [], []
    for index, part in enumerate(description):
        if part == "linear":
            names = (f"fc.{index}.weight", f"fc.{index}.bias")
            if any(name not in state for name in names):
                raise CheckpointError(f"{source}: its card lists a head that has no {names[0]}")
            pairs.append((state[names[0]].float(), state[names[1]].float()))
            activations.append("linear")
        elif part in ACTIVATIONS and activations:
            activations[-1] = part
        else:
            raise CheckpointError(f"{source}: its card lists an unknown part of the head, {part!r}")
    head = build_head(pairs, activations)
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    outputs = len(pairs[-1][1])
    first = pairs[0][0]
    body |= {"fc.weight": first.new_zeros(outputs, first.shape[1]), "fc.bias": pairs[-1][1]}
    return body, head
