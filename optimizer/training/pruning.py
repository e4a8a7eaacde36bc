"""2:4 sparsity: weights are pruned once by magnitude, and stay zero in every step of the training.

Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks".
Not handled: grouped convolutions, and layers whose input channels are not divisible by four (the
first convolution of a network for RGB images). They stay dense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.errors import UsageError
from optimizer.models import Model
from optimizer.options import TrainOptions
from optimizer.targets.structured_sparsity import can_be_sparse, magnitude_mask

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Pruning", "check_sparsity"]


def check_sparsity(options: TrainOptions, init: Model | None) -> None:
    """Refuse to prune what has no trained weights, or is no classifier.

    Raises:
        UsageError: There is no ``init``, or it is a detector.
    """
    if options.sparsity is None:
        return
    if init is None:
        raise UsageError(
            "--sparsity keeps the largest weights of a trained network",
            hint="--init model.safetensors; resnet-opt train writes one",
        )
    if init.detector is not None:
        raise UsageError(
            f"--sparsity is for classifiers, not for {init.arch}", hint="leave out --sparsity"
        )


class Pruning:
    """The weights of a network that stay zero.

    Attributes:
        sparse: Names of the layers with the pattern.
        dense: Names of the layers without it.
    """

    def __init__(self, module: nn.Module) -> None:
        """Choose them by magnitude; `apply` sets them to zero."""
        from torch import nn

        self._masks: dict[str, torch.Tensor] = {}
        self.sparse: list[str] = []
        self.dense: list[str] = []
        for name, layer in module.named_modules():
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            if not can_be_sparse(tuple(layer.weight.shape), groups):
                self.dense.append(name)
                continue
            self.sparse.append(name)
            self._masks[f"{name}.weight"] = _mask(layer.weight)

    def apply(self, module: nn.Module) -> None:
        """Set them to zero, in place; called after every change of the weights."""
        import torch

        with torch.no_grad():
            for name in self._masks:
                weight = module.get_parameter(name)
                self._masks[name] = self._masks[name].to(weight.device)
                weight.mul_(self._masks[name])

    def note(self) -> str:
        """One sentence for the user."""
        total = len(self.sparse) + len(self.dense)
        dense = f"; dense: {', '.join(self.dense)}" if self.dense else ""
        return f"2:4 sparse: {len(self.sparse)} of {total} layers{dense}"


def _mask(weight: torch.Tensor) -> torch.Tensor:
    import torch

    mask = magnitude_mask(weight.detach().cpu().contiguous().numpy())
    return torch.from_numpy(mask).to(weight.device)
