"""Optimizer and learning-rate schedule, from torch (LAMB: timm)."""

from __future__ import annotations

from collections.abc import Callable
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
    module: nn.Module,
    settings: TrainOptions,
    rate: float,
    in_backbone: Callable[[str], bool] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained; BatchNorm and biases do not decay.

    Args:
        module: The network.
        settings: Complete options.
        rate: The peak learning rate.
        in_backbone: Whether the parameter of a name learns at `backbone_rate` of it; by default none.

    Raises:
        MissingLibrary: LAMB without timm.
    """
    import torch

    groups = _groups(module, settings, rate, in_backbone)
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


def _groups(
    module: nn.Module,
    settings: TrainOptions,
    rate: float,
    in_backbone: Callable[[str], bool] | None,
) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay; the head's come first, and each group keeps its factor."""
    factor = 1.0 if settings.backbone_rate is None else settings.backbone_rate
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # Only kernels and matrices decay; BatchNorm parameters and biases are 1-D.
            key = (factor if in_backbone and in_backbone(name) else 1.0, parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "lr": rate * share,
            "share": share,
        }
        for (share, decays), parameters in groups.items()
    ]


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainOptions, rate: float, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule, which advances once per change of the weights."""
    from torch.optim import lr_scheduler

    assert settings.epochs is not None
    steps = settings.epochs * steps_per_epoch
    if settings.scheduler == "one-cycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[rate * group.get("share", 1.0) for group in optimizer.param_groups],
            total_steps=steps,
            cycle_momentum=False,
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
