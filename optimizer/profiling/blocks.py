"""From what a profiler told in every round to layers and residual blocks with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines.layer_annotation import annotate
from optimizer.profiling import intervals, roofline
from optimizer.results import Ceilings, Interval, LayerInfo, TimedPart

__all__ = ["block_names", "over_rounds", "summed", "timed_blocks", "timed_layers"]

_BLOCK = re.compile(r"(layer\d+\.\d+)(?:\.|$)")
STEM, HEAD = "stem", "head"


def timed_layers(
    rounds: Sequence[Sequence[LayerInfo]],
    graph: Path | None,
    *,
    batch: int,
    ceilings: Ceilings | None,
    seed: int,
) -> tuple[list[TimedPart], dict[str, list[float]]]:
    """Layers with medians over rounds, judged where there are ceilings.

    Args:
        rounds: What the engine told in every round.
        graph: What tells operations and modules; ``None`` for PyTorch, which tells them itself.
        batch: Images a call.
        ceilings: Of the machine.
        seed: Of the resampling.

    Returns:
        The layers, and the milliseconds of each in every round by name.
    """
    told = list(rounds[0])
    known = told if graph is None else annotate(told, graph)
    spent = [{layer.name: layer.time_ms or 0.0 for layer in one} for one in rounds]
    times = {layer.name: [one.get(layer.name, 0.0) for one in spent] for layer in known}
    medians = {name: over_rounds(one, seed) for name, one in times.items()}
    total = sum(value for value, _ in medians.values())
    layers = []
    for layer, block in zip(known, block_names(known), strict=True):
        value, ci95 = medians[layer.name]
        part = TimedPart(
            name=layer.name,
            torch_names=layer.torch_names,
            type=layer.type,
            precision=layer.precision,
            block=block,
            time_ms=value,
            time_ci95_ms=ci95,
            share=value / total if total else 0.0,
            flops=layer.flops * batch if layer.flops else None,
            bytes=layer.bytes,
        )
        layers.append(roofline.judged(part, ceilings) if ceilings is not None else part)
    return layers, times


def over_rounds(spent: Sequence[float], seed: int) -> tuple[float, Interval | None]:
    """Median and interval; a layer below the clock's resolution has no interval."""
    if min(spent) <= 0.0:
        return float(np.median(spent)), None
    estimate = intervals.median([np.array([value]) for value in spent], seed=seed)
    return estimate.value, estimate.ci95


def block_names(layers: Sequence[LayerInfo]) -> list[str | None]:
    """The residual block of each layer, by the modules in it.

    Returns:
        ``layer1.0``; several joined by `` + `` where a layer spans them; ``stem`` for modules
        before the first block, ``head`` for those after the last; ``None`` where no module is
        named.
    """
    own = [_blocks_of(layer) for layer in layers]
    inside = [index for index, names in enumerate(own) if names]
    first, last = (inside[0], inside[-1]) if inside else (len(layers), -1)
    names: list[str | None] = []
    for index, (layer, blocks) in enumerate(zip(layers, own, strict=True)):
        if not layer.torch_names:
            names.append(None)
        elif blocks:
            names.append(" + ".join(blocks))
        else:
            names.append(STEM if index < first else HEAD if index > last else None)
    return names


def _blocks_of(layer: LayerInfo) -> list[str]:
    found = (_BLOCK.match(name) for name in layer.torch_names)
    return list(dict.fromkeys(match[1] for match in found if match))


def timed_blocks(
    layers: Sequence[TimedPart], times: Mapping[str, Sequence[float]], seed: int
) -> list[TimedPart]:
    """Layers by block, in the order of their first layer; one of no block stands for itself."""
    groups: dict[str, list[TimedPart]] = {}
    for layer in layers:
        groups.setdefault(layer.block or layer.name, []).append(layer)
    spent = {
        name: over_rounds(summed([times[part.name] for part in parts]), seed)
        for name, parts in groups.items()
    }
    total = sum(value for value, _ in spent.values())
    blocks = []
    for name, parts in groups.items():
        value, ci95 = spent[name]
        fields: dict[str, Any] = {
            "name": name,
            "block": parts[0].block,
            "time_ms": value,
            "time_ci95_ms": ci95,
            "share": value / total if total else 0.0,
        }
        blocks.append(roofline.together(parts, **fields))
    return blocks


def summed(times: Sequence[Sequence[float]]) -> list[float]:
    """The sum of several layers in every round."""
    return [sum(one) for one in zip(*times, strict=True)]
