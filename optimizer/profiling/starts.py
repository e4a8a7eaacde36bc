"""Start engines several times, so that intervals include start-to-start variation.

Two starts of one engine have different memory layouts and differ by 0.2 to 3 %, which resampling the
rounds of one start cannot show. Each start is a separate measurement: new processes, warm-up and
interleaved rounds. The figures are of all rounds together;
`optimizer.profiling.intervals.across_starts` widens their intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from optimizer.errors import UsageError
from optimizer.profiling.conditions import merge_conditions
from optimizer.profiling.harness import Cell, Limits, Measured, Measurement, measure
from optimizer.progress import Progress

__all__ = ["MIN_STARTS", "check_starts", "measure_starts"]

MIN_STARTS = 3
"""With two starts Student's factor is 12.7, and intervals would be useless."""


def check_starts(starts: int) -> None:
    """Check the number of starts.

    Raises:
        UsageError: ``starts`` is neither 1 nor at least `MIN_STARTS`.
    """
    if starts != 1 and starts < MIN_STARTS:
        raise UsageError(
            f"{starts} starts cannot show start-to-start variation",
            hint=f"--starts 1, or at least {MIN_STARTS} (typically 5)",
        )


def measure_starts(
    cells: Sequence[Cell], limits: Limits, *, starts: int, seed: int, progress: Progress
) -> Measurement:
    """Measure ``starts`` times, each time with new processes and an equal share of the time.

    An engine that fails in one of the starts counts as failed.

    Raises:
        UsageError: As `measure`.
    """
    limits_per_start = replace(
        limits,
        duration_s=limits.duration_s / starts,
        min_rounds=math.ceil(limits.min_rounds / starts),
    )
    measurements = [
        measure(cells, limits_per_start, seed=seed + start, progress=progress)
        for start in range(starts)
    ]
    if starts == 1:
        return measurements[0]
    offsets = [sum(m.rounds for m in measurements[:start]) for start in range(starts)]
    return Measurement(
        [
            _merge_cell(parts, offsets)
            for parts in zip(*(m.cells for m in measurements), strict=True)
        ],
        merge_conditions([(m.conditions, m.rounds) for m in measurements]),
        sum(m.rounds for m in measurements),
    )


def _merge_cell(parts: Sequence[Measured], offsets: Sequence[int]) -> Measured:
    """Merge one cell's starts; values measured once per start come from the first."""
    base = next((part for part in parts if part.status != "ok"), parts[0])
    peaks = [part.peak_rss_bytes for part in parts if part.peak_rss_bytes is not None]
    joules = [part.joules for part in parts]
    return replace(
        base,
        warmup_calls=sum(part.warmup_calls for part in parts),
        settled=all(part.settled for part in parts),
        blocks=[
            replace(block, start=start, round=offsets[start] + block.round)
            for start, part in enumerate(parts)
            for block in part.blocks
        ],
        peak_rss_bytes=max(peaks) if peaks else None,
        joules=None if None in joules else sum(j for j in joules if j is not None),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )
