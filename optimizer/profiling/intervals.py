"""How far a measured number can be trusted: percentiles, intervals, verdicts.

Samples come in *rounds* (see `optimizer.profiling.harness`). Calls of one round are neighbours in
time and resemble each other, so the round and not the call is what is resampled: a cluster
bootstrap. Where two engines are compared, both are resampled with the same rounds, so that what
slowed a whole round down cancels. Three corrections keep the intervals from being too narrow:

- few rounds: the interval is widened by the quotient of Student's and the normal quantile and by
  ``sqrt(n / (n - 1))``, which the percentile bootstrap lacks;
- rounds that resemble their neighbours (a slow drift): it is widened by
  ``sqrt((1 + r) / (1 - r))`` with ``r`` the lag-1 correlation of the ranks, corrected for its bias
  in short series (Kendall 1954). This is the variance inflation of the mean of an AR(1) series;
- fewer than `MIN_ROUNDS_FOR_INTERVAL` rounds give no interval at all: the extremes of five values
  cover their median with 93.75 % only.

What differs between two starts of the same engine (memory layout, say) is in no round. Of one start
the harness's A/A control shows something, and `judge` takes it as ``floor`` and ``drift``; of several
starts `across_starts` makes intervals as wide as they differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.results import ComparisonVerdict, Interval, Latency

__all__ = [
    "MIN_ROUNDS_FOR_INTERVAL",
    "Estimate",
    "across_starts",
    "judge",
    "latency",
    "median",
    "quantile_bounds",
    "rate",
    "ratio_of_medians",
    "ratio_unpaired",
    "serial_correlation",
    "smallest_sample",
    "wall_rate",
]

Floats = NDArray[np.float64]
Rounds = Sequence[Floats]
"""One array of positive samples (milliseconds) a round."""

MIN_ROUNDS_FOR_INTERVAL = 6
_RESAMPLES = 2000
_BINS = 2048
_CONFIDENCE = 0.95
_ROUNDS_OF_SLOW = 5
"""Rounds with slow calls below which nothing is known of how these come together."""
_PERCENTILES = {"p90": 0.90, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; ``None`` where the rounds are too few for one."""

    value: float
    ci95: Interval | None


def smallest_sample(quantile: float, confidence: float = _CONFIDENCE) -> int:
    """Smallest sample whose maximum is an upper bound of a quantile with this confidence.

    Without assuming a distribution, the largest of ``n`` independent samples exceeds the quantile
    ``q`` with probability ``1 - q**n``: 29 samples for p90, 59 for p95, 299 for p99, 2,995 for
    p99.9. With fewer, no bound on the percentile exists and it is not printed.
    """
    if not (0.0 < quantile < 1.0 and 0.0 < confidence < 1.0):
        raise ValueError(f"quantile {quantile} and confidence {confidence} must lie within (0, 1)")
    return math.ceil(math.log1p(-confidence) / math.log(quantile))


def latency(samples: Floats) -> Latency:
    """Mean and percentiles of all samples of all rounds (never percentiles of percentiles).

    Args:
        samples: Milliseconds, at least one, none left out.

    Returns:
        Percentiles by linear interpolation between order statistics; ``None`` where
        `smallest_sample` says that there are too few samples.
    """
    tails = {
        name: float(np.quantile(samples, q)) if len(samples) >= smallest_sample(q) else None
        for name, q in _PERCENTILES.items()
    }
    return Latency(mean=float(np.mean(samples)), p50=float(np.median(samples)), **tails)


def quantile_bounds(rounds: Rounds, quantile: float) -> tuple[float | None, float | None]:
    """One-sided 95 % bounds of a quantile, from below and from above, without a distribution.

    The number of independent samples below the quantile is binomial, and the bounds are the order
    statistics beyond it with 95 % (Conover, Practical Nonparametric Statistics, 3.2). Slow calls
    come together in some rounds and are not independent: the binomial counts as many samples as
    the spread of the share of slow calls from round to round says they are worth (the design
    effect of Korn and Graubard, 1998), and never more than there are. Where slow calls are in a
    handful of rounds alone, that spread is not known and a round counts as one sample.

    Args:
        rounds: Milliseconds.
        quantile: Within (0, 1).

    Returns:
        ``None`` for a bound that this many samples do not have (see `smallest_sample`).
    """
    from scipy.stats import binom

    ordered = np.sort(np.concatenate(rounds))
    n = len(ordered)
    worth = max(1, math.floor(n / _design_effect(rounds, float(np.quantile(ordered, quantile)))))
    # Of `worth` samples, at most k lie below the quantile with probability binom.cdf(k, ...).
    above = int(binom.ppf(_CONFIDENCE, worth, quantile))
    below = int(binom.ppf(1 - _CONFIDENCE, worth, quantile)) - 1
    upper = ordered[math.ceil((above + 1) / worth * n) - 1] if above < worth else None
    lower = ordered[math.floor((below + 1) / worth * n) - 1] if below >= 0 else None
    return None if lower is None else float(lower), None if upper is None else float(upper)


def _design_effect(rounds: Rounds, limit: float) -> float:
    """Variance of the share of samples above a limit, in units of that of independent samples."""
    slow = np.array([np.count_nonzero(r > limit) for r in rounds], np.float64)
    sizes = np.array([len(r) for r in rounds], np.float64)
    n, share = sizes.sum(), slow.sum() / sizes.sum()
    if len(rounds) < 2 or share == 0:
        return 1.0
    between = len(rounds) / (len(rounds) - 1) * float(np.sum((slow - share * sizes) ** 2)) / n**2
    effect: float = between * n / (share * (1 - share))
    if np.count_nonzero(slow) < min(_ROUNDS_OF_SLOW, len(rounds)):
        # The spread cannot be told from so few: each round counts as one sample.
        effect = max(effect, float(n) / len(rounds))
    return max(1.0, effect)


# --- estimates -----------------------------------------------------------------------------------


def median(rounds: Rounds, *, seed: int = 0) -> Estimate:
    """Median of all samples, with an interval by bootstrap over rounds."""
    point = float(np.median(np.concatenate(rounds)))
    if len(rounds) < MIN_ROUNDS_FOR_INTERVAL:
        return Estimate(point, None)
    resampled = _weighted_medians(rounds, _multiplicities(len(rounds), seed))
    return Estimate(point, _interval(point, resampled, _widening(np.log(_medians(rounds)))))


def rate(rounds: Rounds, *, seed: int = 0) -> Estimate:
    """Calls per second of measured time: all calls over the sum of all their latencies.

    Unlike ``1 / median`` this is the rate that was really reached, slow calls included.
    """
    totals = np.array([np.sum(r) for r in rounds]) / 1e3
    return wall_rate(np.array([len(r) for r in rounds], np.float64), totals, seed=seed)


def wall_rate(work: Floats, seconds: Floats, *, seed: int = 0) -> Estimate:
    """Work per second: all work over all time, with an interval by bootstrap over rounds.

    Args:
        work: What was done in each round, above zero.
        seconds: How long it took.
        seed: Seed of the resampling.
    """
    point = float(work.sum() / seconds.sum())
    if len(work) < MIN_ROUNDS_FOR_INTERVAL:
        return Estimate(point, None)
    weights = _multiplicities(len(work), seed)
    resampled = (weights @ work) / (weights @ seconds)
    return Estimate(point, _interval(point, resampled, _widening(np.log(work / seconds))))


def ratio_of_medians(a: Rounds, b: Rounds, *, seed: int = 0) -> Estimate:
    """Speed of ``b`` in units of ``a``: median of ``a`` over median of ``b``, paired by round.

    Args:
        a: Rounds of the baseline, milliseconds.
        b: The same rounds of the other engine; ``b[i]`` was measured beside ``a[i]``.
        seed: Seed of the resampling.

    Raises:
        ValueError: The two do not have the same number of rounds.
    """
    if len(a) != len(b):
        raise ValueError(f"paired rounds: {len(a)} and {len(b)} are not the same number")
    point = float(np.median(np.concatenate(a)) / np.median(np.concatenate(b)))
    if len(a) < MIN_ROUNDS_FOR_INTERVAL:
        return Estimate(point, None)
    weights = _multiplicities(len(a), seed)
    resampled = _weighted_medians(a, weights) / _weighted_medians(b, weights)
    differences = np.log(_medians(a)) - np.log(_medians(b))
    return Estimate(point, _interval(point, resampled, _widening(differences)))


def ratio_unpaired(a_medians: Floats, b_medians: Floats, *, seed: int = 0) -> Estimate:
    """As `ratio_of_medians` for two runs at different times, from their medians of rounds.

    What differed between the two runs (temperature, other processes, another start of the engine)
    is in neither of them, so this interval is too narrow by an unknown amount.
    """
    point = float(np.median(a_medians) / np.median(b_medians))
    if min(len(a_medians), len(b_medians)) < MIN_ROUNDS_FOR_INTERVAL:
        return Estimate(point, None)
    sides = []
    for offset, values in enumerate((a_medians, b_medians)):
        rows = np.random.default_rng([seed, offset]).integers(
            0, len(values), (_RESAMPLES, len(values))
        )
        sides.append(np.median(values[rows], axis=1))
    widening = max(_widening(np.log(a_medians)), _widening(np.log(b_medians)))
    return Estimate(point, _interval(point, sides[0] / sides[1], widening))


def across_starts(estimate: Estimate, values: Sequence[float]) -> Estimate:
    """An interval that holds what starts of the same engines differ by.

    Student's interval of the mean of the starts' logarithms, around the estimate; never narrower than
    the estimate's own.

    Args:
        estimate: Of all rounds together.
        values: The same quantity of each start alone, positive; fewer than three change nothing.
    """
    from scipy.special import stdtrit

    if len(values) < 3 or estimate.ci95 is None:
        return estimate
    logs = np.log(np.asarray(values, np.float64))
    student = float(stdtrit(len(logs) - 1, 1 - (1 - _CONFIDENCE) / 2))
    reach = math.exp(student * float(logs.std(ddof=1)) / math.sqrt(len(logs)))
    low, high = estimate.ci95
    return Estimate(
        estimate.value, (min(low, estimate.value / reach), max(high, estimate.value * reach))
    )


# --- verdict -------------------------------------------------------------------------------------


def judge(
    speed: Estimate, *, min_effect: float, floor: float = 0.0, drift: float = 0.0
) -> ComparisonVerdict:
    """What a ratio of speeds means against the smallest effect of interest.

    - ``equivalent``: the whole interval, made wider by ``drift`` on both sides, lies within
      ``1 / (1 + min_effect)`` and ``1 + min_effect``;
    - ``faster`` (``slower``): the interval lies wholly above (below) one *and* the ratio itself is
      at least ``1 + e`` (at most ``1 / (1 + e)``), with ``e`` the larger of ``min_effect`` and
      ``floor``;
    - ``inconclusive``: anything else.

    Bounds are symmetric on a log scale, so that exchanging the engines exchanges the verdicts.

    Args:
        speed: Speed of the candidate in units of the baseline.
        min_effect: Smallest relative difference of interest, 0.02 for 2 %.
        floor: Largest difference that the same engine may have from itself in this run.
        drift: Difference that it did show; what two starts differ by is in no interval.
    """
    if speed.ci95 is None:
        return "inconclusive"
    low, high = speed.ci95
    if (1 + drift) / (1 + min_effect) <= low and high <= (1 + min_effect) / (1 + drift):
        return "equivalent"
    effect = 1 + max(min_effect, floor)
    if low > 1 and speed.value >= effect:
        return "faster"
    if high < 1 and speed.value <= 1 / effect:
        return "slower"
    return "inconclusive"


# --- the bootstrap -------------------------------------------------------------------------------


def _medians(rounds: Rounds) -> Floats:
    return np.array([np.median(r) for r in rounds])


def _multiplicities(n: int, seed: int) -> Floats:
    """How often each of ``n`` rounds is drawn: resamples x n, rows add up to n."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)


def _weighted_medians(rounds: Rounds, weights: Floats) -> Floats:
    """Median of the pooled samples, once a row of ``weights`` (resamples x rounds).

    Sorting the pool anew for every resample costs seconds for 100,000 samples. The pool is sorted
    once, into bins that hold one sample at the median and more away from it, and the resamples
    only count; the loss is below the bin's width in rank, and none up to `_BINS` samples.
    """
    values = np.concatenate(rounds)
    owner = np.repeat(np.arange(len(rounds)), [len(r) for r in rounds])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    bins = _bins(len(values))
    first = np.flatnonzero(np.diff(bins, prepend=-1))
    last = np.append(first[1:], len(values)) - 1
    middles = (values[(first + last) // 2] + values[(first + last + 1) // 2]) / 2
    counts = np.zeros((len(rounds), len(first)))
    np.add.at(counts, (owner, bins), 1.0)
    cumulated = np.cumsum(weights @ counts, axis=1)
    half = cumulated[:, -1:] / 2
    lower = np.sum(cumulated < half, axis=1)
    upper = np.minimum(np.sum(cumulated <= half, axis=1), len(first) - 1)
    medians: Floats = (middles[lower] + middles[upper]) / 2
    return medians


def _bins(n: int) -> NDArray[np.intp]:
    """Bin of each of ``n`` sorted samples, numbered without gaps."""
    if n <= _BINS:
        return np.arange(n)
    position = (np.arange(n) + 0.5) / n * 2 - 1
    fine = np.sign(position) * np.sqrt(np.abs(position))
    raw = np.floor((fine + 1) / 2 * _BINS).astype(np.intp)
    return np.unique(raw, return_inverse=True)[1]


def _interval(point: float, resampled: Floats, widening: float) -> Interval:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(np.log(resampled), [tail, 1 - tail])
    centre = math.log(point)
    return (
        math.exp(centre - widening * max(0.0, centre - float(low))),
        math.exp(centre + widening * max(0.0, float(high) - centre)),
    )


def _widening(series: Floats) -> float:
    from scipy.special import ndtri, stdtrit

    n = len(series)
    upper = 1 - (1 - _CONFIDENCE) / 2
    few = float(stdtrit(n - 1, upper) / ndtri(upper)) * math.sqrt(n / (n - 1))
    correlation = serial_correlation(series)
    return few * math.sqrt((1 + correlation) / (1 - correlation))


def serial_correlation(series: Floats) -> float:
    """Correlation of each value's rank with the next one's, within [0, 0.95].

    Ranks, because one disturbed round must not hide that its neighbours are alike; the estimate's
    bias of about ``-(1 + 4 r) / n`` is taken out; negative values count as zero, because no
    interval shall be narrowed by them.
    """
    n = len(series)
    _, inverse, count = np.unique(series, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[inverse]
    deviation = ranks - ranks.mean()
    total = float(np.sum(deviation**2))
    if n < MIN_ROUNDS_FOR_INTERVAL or total == 0.0:
        return 0.0
    raw = float(np.sum(deviation[:-1] * deviation[1:])) / total
    return min(0.95, max(0.0, (n * raw + 1) / (n - 4)))
