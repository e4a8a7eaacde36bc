"""Curves of a sweep: throughput over latency, the knee and the best setting.

**The knee** of a series (batch sizes at one number of threads and streams) is the smallest batch
whose throughput is within 5 % of the highest. Kneedle (Satopaa et al., 2011), which maximizes the
distance from the chord, is not used: it scales both axes to the measured range, so a different
largest batch moves its knee, and on the flat curve of a CPU it picks up noise.

**The best setting** under a latency limit has the highest throughput of all settings that meet it. A
setting meets the limit if the *upper* 95 % bound of the chosen percentile is within the limit, and
misses it if the lower bound exceeds the limit. Otherwise, or with too few samples for a bound, it is
undecided and not chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.profiling import intervals
from optimizer.profiling.harness import Measured
from optimizer.results import Curve, CurvePoint, Knee, LatencyBound, Setting

__all__ = ["NEAR", "curve", "curve_findings", "describe_setting", "setting_of"]

NEAR = 0.95
"""Share of the highest throughput that a knee must reach."""


def setting_of(measured: Measured) -> Setting:
    """The setting of a cell."""
    cell = measured.cell
    return Setting(batch=cell.batch, threads=cell.threads, streams=cell.streams)


def curve(
    engine: str,
    measured: Sequence[tuple[Measured, str | None]],
    bound: LatencyBound | None,
    *,
    seed: int = 0,
) -> Curve:
    """The curve of one engine.

    Args:
        engine: Name of the engine.
        measured: Its cells, each with the name of its raw sample file.
        bound: The requested latency limit, if any.
        seed: Seed of the bootstrap.
    """
    points = [_point(m, raw, bound, seed) for m, raw in measured]
    series = dict.fromkeys((p.setting.threads, p.setting.streams) for p in points)
    knees = [
        knee
        for threads, streams in series
        if (knee := _knee([p for p in points if _in(p, threads, streams)])) is not None
    ]
    return Curve(
        engine=engine,
        points=points,
        knees=knees,
        fastest=_fastest(points),
        bound=bound,
        best=_fastest([p for p in points if p.holds]),
    )


def _point(
    measured: Measured, raw_file: str | None, bound: LatencyBound | None, seed: int
) -> CurvePoint:
    blocks = measured.blocks
    point = CurvePoint(
        setting=setting_of(measured),
        status=measured.status,
        error=measured.error,
        samples=sum(len(b.spans_ms) for b in blocks),
        rounds=len(blocks),
        raw_file=raw_file,
    )
    if measured.status != "ok":
        return point
    batch = measured.cell.batch
    rounds = [b.spans_ms.sum(axis=1) for b in blocks]
    work, wall = np.array([b.work_and_wall for b in blocks]).T
    rate = intervals.wall_rate(work * batch, wall, seed=seed)
    point.images_per_s, point.images_per_s_ci95 = rate.value, rate.ci95
    point.round_images_per_s = (work * batch / wall).tolist()
    point.latency_ms = intervals.latency(np.concatenate(rounds))
    point.latency_ci95_ms = intervals.median(rounds, seed=seed).ci95
    if bound is not None:
        low, high = intervals.quantile_bounds(rounds, int(bound.percentile[1:]) / 100)
        point.bounded_ci95_ms = (low, high)
        if high is not None and high <= bound.max_latency_ms:
            point.holds = True
        elif low is not None and low > bound.max_latency_ms:
            point.holds = False
    return point


def _in(point: CurvePoint, threads: int, streams: int) -> bool:
    return (point.setting.threads, point.setting.streams) == (threads, streams)


def _fastest(points: Sequence[CurvePoint]) -> Setting | None:
    timed = [p for p in points if p.images_per_s is not None]
    best = max(timed, key=lambda p: p.images_per_s or 0.0, default=None)
    return None if best is None else best.setting


def _knee(series: Sequence[CurvePoint]) -> Knee | None:
    rates = {p.setting.batch: p for p in series if p.images_per_s is not None}
    batches = sorted(rates)
    if len(batches) < 2:
        return None
    best = max(rates.values(), key=lambda p: p.images_per_s or 0.0)
    assert best.images_per_s is not None
    enough = NEAR * best.images_per_s
    batch = next(b for b in batches if (rates[b].images_per_s or 0.0) >= enough)
    if batch == batches[-1]:
        return None
    smaller = [rates[b].images_per_s_ci95 for b in batches if b < batch]
    certain = all(ci is not None and ci[1] < enough for ci in smaller)
    return Knee(
        setting=rates[batch].setting,
        of_best=(rates[batch].images_per_s or 0.0) / best.images_per_s,
        certain=certain,
    )


# --- text ----------------------------------------------------------------------------------------


def curve_findings(curve: Curve) -> list[str]:
    """The findings of a curve, one sentence each."""
    sentences = []
    for knee in curve.knees:
        doubt = "" if knee.certain else "; the intervals do not exclude a smaller batch"
        sentences.append(
            f"knee at {describe_setting(knee.setting)}: {knee.of_best:.0%} of the series' highest "
            f"throughput{doubt}"
        )
    sentences += [
        f"throughput still rises by more than {1 - NEAR:.0%} at batch {batch}, the largest "
        f"measured ({_rest(threads, streams)})"
        for threads, streams, batch in _rising(curve)
    ]
    if curve.bound is not None:
        sentences.append(_best(curve, curve.bound))
    return sentences


def describe_setting(setting: Setting) -> str:
    """``batch 8, 2 threads, 1 stream``."""
    return f"batch {setting.batch}, {_rest(setting.threads, setting.streams)}"


def _rest(threads: int, streams: int) -> str:
    return f"{_count(threads, 'thread')}, {_count(streams, 'stream')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _rising(curve: Curve) -> list[tuple[int, int, int]]:
    """Series of two or more batches without a knee: threads, streams, largest batch."""
    with_knee = {(k.setting.threads, k.setting.streams) for k in curve.knees}
    largest: dict[tuple[int, int], list[int]] = {}
    for p in curve.points:
        if p.images_per_s is not None:
            key = (p.setting.threads, p.setting.streams)
            largest.setdefault(key, []).append(p.setting.batch)
    return [
        (*key, max(batches))
        for key, batches in largest.items()
        if key not in with_knee and len(batches) > 1
    ]


def _best(curve: Curve, bound: LatencyBound) -> str:
    limit = f"{bound.percentile} within {bound.max_latency_ms:g} ms"
    if curve.best is not None:
        rate = next(p.images_per_s for p in curve.points if p.setting == curve.best)
        return f"best with {limit}: {describe_setting(curve.best)}, {rate:.1f} images/s"
    undecided = [p for p in curve.points if p.status == "ok" and p.holds is None]
    if not undecided:
        return f"no setting meets {limit}"
    needed = intervals.smallest_sample(int(bound.percentile[1:]) / 100)
    settings = _count(len(undecided), "setting")
    return (
        f"no setting is known to meet {limit}: {settings} undecided (at least {needed:,} samples "
        "each are needed); measure longer or choose another --latency-percentile"
    )
