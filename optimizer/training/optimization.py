"""Optimizer and learning-rate schedule, from torch (LAMB: timm)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.errors import MissingLibrary
from optimizer.options import TrainOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["build_optimizer", "build_schedule", "peak_rate"]

_WARMUP_START = 0.01
"""Share of the peak rate at which a warm-up begins, as in torchvision's reference."""


def peak_rate(settings: TrainOptions, total_batch: int) -> float:
    """The peak learning rate, scaled linearly to the batch if requested (Goyal et al. 2017)."""
    assert settings.lr is not None
    return settings.lr * (total_batch / settings.lr_batch if settings.lr_batch else 1.0)


def build_optimizer(
    module: nn.Module, settings: TrainOptions, rate: float
) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained; BatchNorm and biases do not decay.

    Raises:
        MissingLibrary: LAMB without timm.
    """
    import torch

    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            # Only kernels and matrices decay; BatchNorm parameters and biases are 1-D.
            (decayed if parameter.ndim > 1 else undecayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, fused=True)
        case "lamb":
            try:
                from timm.optim import Lamb
            except ImportError as error:
                raise MissingLibrary(
                    "the optimizer LAMB needs timm", hint="pip install 'resnet-opt[timm]'"
                ) from error
            lamb: torch.optim.Optimizer = Lamb(groups, lr=rate)
            return lamb
        case _:
            return torch.optim.SGD(
                groups,
                lr=rate,
                momentum=settings.momentum or 0.0,
                nesterov=bool(settings.momentum),
                fused=True,  # one pass over the weights; the update is a tenth of a step at 32 px
            )


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainOptions, rate: float, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule, which advances once per change of the weights."""
    from torch.optim import lr_scheduler

    assert settings.epochs is not None
    steps = settings.epochs * steps_per_epoch
    if settings.scheduler == "one-cycle":
        return lr_scheduler.OneCycleLR(
            optimizer, max_lr=rate, total_steps=steps, cycle_momentum=False
        )
    warmup = min(round((settings.warmup or 0) * steps_per_epoch), steps // 2)
    main: lr_scheduler.LRScheduler
    if settings.scheduler == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup))
    else:
        assert settings.lr_step is not None
        assert settings.lr_decay_rate is not None
        main = lr_scheduler.StepLR(
            optimizer, settings.lr_step * steps_per_epoch, gamma=settings.lr_decay_rate
        )
    if warmup == 0:
        return main
    start = lr_scheduler.LinearLR(optimizer, _WARMUP_START, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [start, main], [warmup])
