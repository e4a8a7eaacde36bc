"""Rounding with a gradient: the forward pass rounds, the backward pass passes gradients through.

Values within the range get the gradient as it is, clipped ones none; a scale gets the gradient of
Esser et al. 2020, "Learned Step Size Quantization": the rounding error within the range, the largest
or smallest level outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.precision.int8.rounding import WeightGrid, nearest

if TYPE_CHECKING:
    import torch

__all__ = ["round_activations", "round_constants", "round_weights"]


def round_activations(
    values: torch.Tensor, scale: torch.Tensor, levels: tuple[int, int]
) -> torch.Tensor:
    """Quantize and dequantize a tensor.

    Args:
        values: float32 of any shape.
        scale: A scalar.
        levels: Smallest and largest value, in multiples of the scale.

    Returns:
        float32 in the same shape.
    """
    result: torch.Tensor = _functions()[0].apply(values, scale, levels)
    return result


def round_weights(weight: torch.Tensor, scale: torch.Tensor, grid: WeightGrid) -> torch.Tensor:
    """Quantize and dequantize a weight.

    Args:
        weight: float32, O x I x ….
        scale: float32[O].
        grid: The allowed integers.

    Returns:
        float32 in the shape of the weight.
    """
    column = scale.reshape(-1, *([1] * (weight.ndim - 1)))
    result: torch.Tensor = _functions()[1].apply(weight, column, grid)
    return result


def round_constants(scale: torch.Tensor, kind: str) -> torch.Tensor:
    """Scales as the graph stores them, ``fp16`` or ``fp32``; the gradient passes through."""
    if kind != "fp16":
        return scale
    return scale + (scale.half().float() - scale).detach()


_FUNCTIONS: list[Any] = []


def _functions() -> list[Any]:
    """The two functions with a gradient of their own; torch is imported when they are needed."""
    if not _FUNCTIONS:
        _FUNCTIONS.extend(_defined())
    return _FUNCTIONS


def _defined() -> list[Any]:
    import torch

    class Activations(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Any, scale: Any, levels: tuple[int, int]) -> Any:
            ctx.save_for_backward(values, scale)
            ctx.levels = levels
            return values.div(scale).round_().clamp_(*levels).mul_(scale)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            values, scale = ctx.saved_tensors
            scaled = values.div(scale)
            clipped = scaled.clamp(*ctx.levels)
            inside = clipped == scaled
            error = clipped.round_().sub_(scaled.mul_(inside))  # clipped values: the level itself
            return gradient * inside, (gradient * error).sum().reshape(scale.shape), None

    class Weights(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: Any, scale: Any, grid: WeightGrid) -> Any:
            scaled = weight / scale
            integers = _on_grid(scaled, grid)
            inside = scaled.abs() <= grid.largest
            ctx.save_for_backward(inside, integers - scaled * inside)
            return integers * scale

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            inside, error = ctx.saved_tensors
            rest = list(range(1, gradient.ndim))
            return gradient * inside, (gradient * error).sum(rest, keepdim=True), None

    return [Activations, Weights]


def _on_grid(scaled: torch.Tensor, grid: WeightGrid) -> torch.Tensor:
    import torch

    if grid.pairs == "free":
        return scaled.round().clamp_(-grid.largest, grid.largest)
    # The limits of pairs are for CPUs; the one function that knows them computes in NumPy.
    integers = nearest(scaled.detach().cpu().contiguous().numpy(), grid)
    return torch.from_numpy(integers).to(scaled.device)
