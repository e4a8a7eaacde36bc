"""Engines that are started several times, so that intervals hold what one start changes.

Two starts of one engine lie differently in memory and differ by 0.2 to 3 %, which no resampling of one
start's rounds can see. Each start is a measurement of its own: new processes, warm-up, interleaved
rounds. The figures are those of all rounds together; `optimizer.profiling.intervals.across_starts`
makes their intervals as wide as the starts differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from optimizer.errors import UsageError
from optimizer.profiling.conditions import joined
from optimizer.profiling.harness import Cell, Limits, Measured, Measurement, measure
from optimizer.progress import Progress

__all__ = ["LEAST_STARTS", "check_starts", "measure_starts"]

LEAST_STARTS = 3
"""Of two starts Student's factor is 12.7: nothing could be said."""


def check_starts(starts: int) -> None:
    """Refuse a number of starts that says nothing.

    Raises:
        UsageError: Fewer than one, or two.
    """
    if starts != 1 and starts < LEAST_STARTS:
        raise UsageError(
            f"{starts} starts tell nothing of how starts differ",
            hint=f"--starts 1, or {LEAST_STARTS} and more; 5 is usual",
        )


def measure_starts(
    cells: Sequence[Cell], limits: Limits, *, starts: int, seed: int, progress: Progress
) -> Measurement:
    """Measure so often, each time with new processes and for an equal part of the time.

    An engine that fails in one of the starts has failed.

    Raises:
        UsageError: As `measure`.
    """
    part = replace(
        limits,
        duration_s=limits.duration_s / starts,
        least_rounds=math.ceil(limits.least_rounds / starts),
    )
    done = [measure(cells, part, seed=seed + number, progress=progress) for number in range(starts)]
    if starts == 1:
        return done[0]
    before = [sum(one.rounds for one in done[:number]) for number in range(starts)]
    return Measurement(
        [_joined(parts, before) for parts in zip(*(one.cells for one in done), strict=True)],
        joined([(one.conditions, one.rounds) for one in done]),
        sum(one.rounds for one in done),
    )


def _joined(parts: Sequence[Measured], before: Sequence[int]) -> Measured:
    """One cell's starts as one measurement; what is measured once a start is the first one's."""
    whole = next((part for part in parts if part.status != "ok"), parts[0])
    peaks = [part.peak_rss_bytes for part in parts if part.peak_rss_bytes is not None]
    joules = [part.joules for part in parts]
    return replace(
        whole,
        warmup_calls=sum(part.warmup_calls for part in parts),
        settled=all(part.settled for part in parts),
        blocks=[
            replace(block, start=number, round=before[number] + block.round)
            for number, part in enumerate(parts)
            for block in part.blocks
        ],
        peak_rss_bytes=max(peaks) if peaks else None,
        joules=None if None in joules else sum(one for one in joules if one is not None),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )
