"""Predicts the time of a narrow network from a latency table.

A block's first convolution costs what it cost at its number of outputs, the last one what it cost at
its number of inputs. A convolution between two narrow ones was measured with both at the same share
of their channels. With different ones it is the geometric mean of the two measured times, which is
exact where time is proportional to operations. The table's ``check`` shows how far that is off.

Not handled: what a block's width changes in its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from optimizer.models import Widths
from optimizer.results import BlockTimes, TimesAtBatch

__all__ = ["block_ms", "candidate_widths", "network_ms"]


def block_ms(times: BlockTimes, inner: tuple[int, ...]) -> float:
    """Predicted time of a block, milliseconds.

    Args:
        times: The block in the table.
        inner: Output channels of its inner layers, within the measured ones; between two measured
            widths the time is interpolated.
    """
    last = len(inner)
    total = times.rest_ms
    for layer in range(last + 1):
        ends = {max(0, layer - 1), min(last - 1, layer)}  # its inputs and its outputs, where inner
        total += math.sqrt(
            math.prod(_layer_ms(times, layer, end, inner[end]) ** (2 / len(ends)) for end in ends)
        )
    return total


def _layer_ms(times: BlockTimes, layer: int, end: int, width: int) -> float:
    points = sorted(
        (inner[end], ms[layer]) for inner, ms in zip(times.inner, times.layers_ms, strict=True)
    )
    widths, values = zip(*points, strict=True)
    return float(np.interp(width, widths, values))


def network_ms(at: TimesAtBatch, widths: Widths) -> float:
    """Predicted time of a call of a network with these widths, milliseconds."""
    return at.outside_ms + sum(
        block_ms(at.blocks[name], inner[:-1]) for name, inner in widths.blocks
    )


def candidate_widths(
    times: Mapping[str, BlockTimes], name: str, present: tuple[int, ...], step: int
) -> list[tuple[int, ...]]:
    """The widths of each inner layer of a block that a choice may take, in descending order.

    They are the measured ones that are multiples of ``step``, and the present ones.
    """
    columns = zip(*times[name].inner, strict=True)
    return [
        tuple(sorted({w for w in column if w < now and w % step == 0} | {now}, reverse=True))
        for column, now in zip(columns, present, strict=True)
    ]
