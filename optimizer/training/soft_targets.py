"""Distance of a network's outputs from another network's (Hinton et al. 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["soft_divergence"]


def soft_divergence(
    logits: torch.Tensor, expected: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean Kullback-Leibler divergence from softened distributions, a scalar.

    It is multiplied by the temperature's square, so that gradients do not depend on it.

    Args:
        logits: Of the network that learns, N x classes.
        expected: Of the network that it learns from, N x classes.
        temperature: Softens both distributions, so that images of which a network is sure count too.
    """
    from torch.nn.functional import kl_div, log_softmax

    student = log_softmax(logits / temperature, dim=1)
    teacher = log_softmax(expected / temperature, dim=1)
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
