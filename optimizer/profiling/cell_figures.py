"""Compute the figures of a cell, and the comparison of two cells, from their blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from optimizer.engines.placement import runs_on
from optimizer.profiling import intervals
from optimizer.profiling.engine_facts import EngineFacts
from optimizer.profiling.harness import MIN_ROUNDS, Measured
from optimizer.profiling.verdict import drift, largest_effect
from optimizer.results import Comparison, EngineBench, Interval

__all__ = ["compare_cells", "compute_figures"]

_COMPUTE = 1  # column of `Block.spans_ms`
_SPANS = ("host_to_device", "compute", "device_to_host")
Rounds = list[NDArray[np.float64]]


def _rounds(measured: Measured, span: int = _COMPUTE) -> Rounds:
    return [block.spans_ms[:, span] for block in measured.blocks]


def _across_starts(
    estimate: intervals.Estimate,
    measured: Measured,
    value: Callable[[slice], float],
) -> intervals.Estimate:
    """Include start-to-start variation in the interval if there were several starts."""
    starts = [block.start for block in measured.blocks]
    if len(set(starts)) == 1:
        return estimate
    edges = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]
    values = [value(slice(a, b)) for a, b in pairwise(edges)]
    return intervals.across_starts(estimate, values)


def compare_cells(
    a: Measured, b: Measured, *, min_effect: float, control: Comparison | None, seed: int
) -> Comparison | None:
    """The speed of ``b`` relative to ``a``, with a verdict; ``None`` if one of them failed.

    Args:
        a: The baseline.
        b: The candidate, measured in the same rounds.
        min_effect: Smallest difference of interest.
        control: The A/A comparison of the baseline; ``None`` with several starts, because the
            interval then includes start-to-start variation.
        seed: Seed of the bootstrap.
    """
    if a.status != "ok" or b.status != "ok":
        return None
    a_rounds, b_rounds = _rounds(a), _rounds(b)

    def ratio(part: slice) -> float:
        medians = [float(np.median(np.concatenate(r[part]))) for r in (a_rounds, b_rounds)]
        return medians[0] / medians[1]

    speed = _across_starts(intervals.ratio_of_medians(a_rounds, b_rounds, seed=seed), a, ratio)
    assert speed.ci95 is not None, "the harness measures enough rounds for an interval"
    return Comparison(
        a=a.cell.name,
        b=b.cell.name,
        batch=a.cell.batch,
        ratio=speed.value,
        ci95=speed.ci95,
        min_effect=min_effect,
        verdict=intervals.judge(
            speed, min_effect=min_effect, floor=largest_effect(control), drift=drift(control)
        ),
    )


def compute_figures(
    fact: EngineFacts, measured: Measured, seed: int, raw_file: str | None
) -> EngineBench:
    """All figures of one cell.

    Args:
        fact: The engine.
        measured: Its measurement.
        seed: Seed of the bootstrap.
        raw_file: Name of its raw sample file.
    """
    cell = measured.cell
    bench = EngineBench(
        name=fact.name,
        file=fact.path.name,
        backend=fact.backend,
        status=measured.status,
        error=measured.error,
        precision=fact.precision,
        batch=cell.batch,
        image_size=measured.image_size or cell.image_size,
        threads=cell.threads,
        streams=cell.streams,
        runs_on=runs_on(fact.path, cell.device),
        warmup_calls=measured.warmup_calls,
        samples=sum(len(block.spans_ms) for block in measured.blocks),
        rounds=len(measured.blocks),
        first_round=measured.first_round,
        start_s=measured.start_s,
        first_inference_ms=measured.first_inference_ms,
        build_s=fact.build_s,
        load_s=measured.load_s,
        engine_bytes=fact.path.stat().st_size,
        peak_rss_bytes=measured.peak_rss_bytes,
        gpu_memory_bytes=measured.gpu_memory_bytes,
        raw_file=raw_file,
    )
    # Keep the figures of an engine that failed late (a lost GPU, for example).
    if measured.status != "ok" and len(measured.blocks) < MIN_ROUNDS:
        return bench
    rounds = _rounds(measured)
    rate = _across_starts(
        _rate(measured, slice(None), seed), measured, lambda part: _rate(measured, part, seed).value
    )
    p50 = _across_starts(
        intervals.median(rounds, seed=seed),
        measured,
        lambda part: float(np.median(np.concatenate(rounds[part]))),
    )
    return bench.model_copy(
        update={
            "latency_ms": intervals.latency(np.concatenate(rounds)),
            "latency_ci95_ms": p50.ci95,
            "images_per_s": rate.value * cell.batch,
            "images_per_s_ci95": _scaled(rate.ci95, cell.batch),
            "batches_per_s": rate.value,
            "spans_ms": _spans(measured),
            "energy_j": _joules_per_image(measured),
            "round_medians_ms": [float(np.median(r)) for r in rounds],
        }
    )


def _spans(measured: Measured) -> dict[str, float]:
    """Median milliseconds of the parts of a call and of the whole call."""
    spans = np.concatenate([block.spans_ms for block in measured.blocks])
    return {
        **dict(zip(_SPANS, np.median(spans, axis=0).tolist(), strict=True)),
        "end_to_end": float(np.median(spans.sum(axis=1))),
    }


def _rate(measured: Measured, part: slice, seed: int) -> intervals.Estimate:
    """Calls per second: from call durations for one stream, else by wall-clock time."""
    if measured.cell.streams == 1:
        return intervals.rate(_rounds(measured)[part], seed=seed)
    work, wall = np.array([b.work_and_wall for b in measured.blocks[part]]).T
    return intervals.wall_rate(work, wall, seed=seed)


def _scaled(interval: Interval | None, factor: float) -> Interval | None:
    return None if interval is None else (interval[0] * factor, interval[1] * factor)


def _joules_per_image(measured: Measured) -> float | None:
    calls = sum(len(block.calls) for block in measured.blocks)
    return None if measured.joules is None else measured.joules / (calls * measured.cell.batch)
