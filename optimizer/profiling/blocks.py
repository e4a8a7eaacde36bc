"""Layer and residual block times, with intervals, from profiled rounds."""

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
    """Median layer times over rounds, with a roofline verdict if ceilings are given.

    Args:
        rounds: The layers reported by the engine in each round.
        graph: Graph that provides operations and modules; ``None`` for PyTorch, which reports them.
        batch: Images per call.
        ceilings: Ceilings of the machine.
        seed: Seed of the bootstrap.

    Returns:
        The layers, and each layer's milliseconds per round, by layer name.
    """
    reported = list(rounds[0])
    annotated = reported if graph is None else annotate(reported, graph)
    by_name = [{layer.name: layer.time_ms or 0.0 for layer in layers} for layers in rounds]
    times = {layer.name: [ms.get(layer.name, 0.0) for ms in by_name] for layer in annotated}
    medians = {name: over_rounds(ms, seed) for name, ms in times.items()}
    total = sum(value for value, _ in medians.values())
    parts = []
    for layer, block in zip(annotated, block_names(annotated), strict=True):
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
        parts.append(roofline.with_verdict(part, ceilings) if ceilings is not None else part)
    return parts, times


def over_rounds(times: Sequence[float], seed: int) -> tuple[float, Interval | None]:
    """Median and interval; no interval for a layer below the clock's resolution."""
    if min(times) <= 0.0:
        return float(np.median(times)), None
    estimate = intervals.median([np.array([value]) for value in times], seed=seed)
    return estimate.value, estimate.ci95


def block_names(layers: Sequence[LayerInfo]) -> list[str | None]:
    """The residual block of each layer, from its module names.

    Returns:
        ``layer1.0``; several blocks joined by `` + `` for a layer that spans them; ``stem`` before
        the first block and ``head`` after the last; ``None`` for a layer without module names or
        between blocks.
    """
    blocks_of = [_blocks_of(layer) for layer in layers]
    inside = [index for index, names in enumerate(blocks_of) if names]
    first, last = (inside[0], inside[-1]) if inside else (len(layers), -1)
    names: list[str | None] = []
    for index, (layer, blocks) in enumerate(zip(layers, blocks_of, strict=True)):
        if not layer.torch_names:
            names.append(None)
        elif blocks:
            names.append(" + ".join(blocks))
        else:
            names.append(STEM if index < first else HEAD if index > last else None)
    return names


def _blocks_of(layer: LayerInfo) -> list[str]:
    matches = (_BLOCK.match(name) for name in layer.torch_names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def timed_blocks(
    layers: Sequence[TimedPart], times: Mapping[str, Sequence[float]], seed: int
) -> list[TimedPart]:
    """Times per block, ordered by first layer; a layer outside all blocks is its own entry."""
    groups: dict[str, list[TimedPart]] = {}
    for layer in layers:
        groups.setdefault(layer.block or layer.name, []).append(layer)
    medians = {
        name: over_rounds(summed([times[part.name] for part in parts]), seed)
        for name, parts in groups.items()
    }
    total = sum(value for value, _ in medians.values())
    blocks = []
    for name, parts in groups.items():
        value, ci95 = medians[name]
        fields: dict[str, Any] = {
            "name": name,
            "block": parts[0].block,
            "time_ms": value,
            "time_ci95_ms": ci95,
            "share": value / total if total else 0.0,
        }
        blocks.append(roofline.combine_layers(parts, **fields))
    return blocks


def summed(times: Sequence[Sequence[float]]) -> list[float]:
    """The total of several layers in each round."""
    return [sum(values) for values in zip(*times, strict=True)]
