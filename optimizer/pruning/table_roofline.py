"""A latency table from a model: a roofline of the target, or operations alone.

For an engine that does not run here, or that reports no layer times. A layer takes the larger of its
operations over the peak rate and its bytes over the bandwidth. Fused additions cost nothing in it, and
narrow layers are as efficient as wide ones, which they are not: measured tables show both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from optimizer.models import Model, Widths
from optimizer.options import TableOptions
from optimizer.pruning.prunable import Prunable
from optimizer.pruning.table_networks import block_times, table_widths
from optimizer.results import LatencyTable, TimesAtBatch
from optimizer.search.cost import Machine

__all__ = ["operations_table", "roofline_table"]

_SIZES = {"int8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class _Work:
    """One convolution of the whole network: positions, kernel and groups are the same in narrow ones."""

    positions_in: int
    positions_out: int
    kernel: int
    per_group: int | None

    def flops(self, channels_in: int, channels_out: int) -> int:
        """Operations per image, 2 x MAC."""
        depth = self.per_group or channels_in
        return 2 * self.positions_out * self.kernel * depth * channels_out

    def values(self, channels_in: int, channels_out: int, batch: int) -> int:
        """Weights, and inputs and outputs of a batch."""
        weights = self.kernel * (self.per_group or channels_in) * channels_out
        moved = self.positions_in * channels_in + self.positions_out * channels_out
        return weights + batch * moved


Cost = Callable[[_Work, int, int, int], float]
"""Time of a convolution in milliseconds by work, input and output channels, and batch."""


def roofline_table(
    model: Model,
    prunable: Prunable,
    options: TableOptions,
    engine: str,
    machine: Machine,
    reason: str,
) -> LatencyTable:
    """Predict the times of all layers from the rates of a machine.

    Args:
        model: The network.
        prunable: What can be cut.
        options: Precision and batch sizes.
        engine: The engine that the network is for.
        machine: Peak rates and bandwidth.
        reason: Why nothing was measured.
    """
    half = machine.fp16 if options.precision in {"fp16", "bf16"} else machine.fp32
    peak = machine.int8 if options.precision in {"int8", "fp8"} else half
    size = _SIZES[options.precision]

    def cost(work: _Work, channels_in: int, channels_out: int, batch: int) -> float:
        compute = batch * work.flops(channels_in, channels_out) / peak
        moved = size * work.values(channels_in, channels_out, batch) / machine.bandwidth
        return 1e3 * max(compute, moved)

    text = f"not measured ({reason}): a roofline with the rates of {machine.name}"
    return _table(model, prunable, (options, engine, text, {"roofline": machine.name}), cost)


def operations_table(
    model: Model, prunable: Prunable, options: TableOptions, engine: str
) -> LatencyTable:
    """A table whose times are billions of operations, to choose by operations."""

    def cost(work: _Work, channels_in: int, channels_out: int, batch: int) -> float:
        return batch * work.flops(channels_in, channels_out) / 1e9

    text = "not measured: operations, as --keep-flops asks for"
    return _table(model, prunable, (options, engine, text, {"unit": "GFLOP"}), cost)


def _table(
    model: Model,
    prunable: Prunable,
    about: tuple[TableOptions, str, str, dict[str, Any]],
    cost: Cost,
) -> LatencyTable:
    options, engine, reason, device = about
    networks = table_widths(model.widths, prunable.units)
    works = _works(model)
    batches = []
    for batch in options.batch:
        modules = [_modules(works, widths, batch, cost) for widths in networks]
        outside = sum(
            cost(works[name], layer.in_channels, layer.out_channels, batch)
            for name, layer in model.module.named_modules()
            if isinstance(layer, nn.Conv2d) and name.startswith("conv1")
        )
        blocks = {
            name: block_times(name, networks, modules, droppable=name in prunable.droppable)
            for name, _ in networks[0].blocks
        }
        whole = [outside + sum(layers.values()) for layers in modules]
        batches.append(
            TimesAtBatch(
                batch=batch,
                whole_ms=whole,
                whole_ci95_ms=[None] * len(whole),
                outside_ms=outside,
                blocks=blocks,
            )
        )
    return LatencyTable(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source="model",
        reason=reason,
        arch=model.arch,
        widths=model.widths.to_dict(),
        image_size=model.image_size,
        engine=engine,
        precision=options.precision,
        device=device,
        batches=batches,
    )


def _works(model: Model) -> dict[str, _Work]:
    """The work of each convolution, by its name."""
    works: dict[str, _Work] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
            assert isinstance(layer, nn.Conv2d)
            grouped = layer.in_channels // layer.groups if layer.groups > 1 else None
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            works[name] = _Work(inputs[0][0, 0].numel(), output[0, 0].numel(), kernel, grouped)

        return record

    convs = {n: m for n, m in model.module.named_modules() if isinstance(m, nn.Conv2d)}
    hooks = [conv.register_forward_hook(hook(name)) for name, conv in convs.items()]
    try:
        with torch.inference_mode():
            model.module(torch.zeros(1, model.channels, model.image_size, model.image_size))
    finally:
        for handle in hooks:
            handle.remove()
    return works


def _modules(
    works: Mapping[str, _Work], widths: Widths, batch: int, cost: Cost
) -> dict[str, float]:
    """Time of each convolution inside of blocks, by its name."""
    times: dict[str, float] = {}
    stream = widths.stem
    for name, block in widths.blocks:
        pairs = zip((stream, *block[:-1]), block, strict=True)
        for number, (channels_in, channels_out) in enumerate(pairs, start=1):
            conv = f"{name}.conv{number}"
            times[conv] = cost(works[conv], channels_in, channels_out, batch)
        for shortcut in (conv for conv in works if conv.startswith(f"{name}.downsample.")):
            times[shortcut] = cost(works[shortcut], stream, block[-1], batch)
        stream = block[-1]
    return times
