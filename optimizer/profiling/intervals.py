"""Statistics of measured latencies: percentiles, confidence intervals and verdicts.

Samples come in *rounds* (see `optimizer.profiling.harness`). Calls of one round are close in time and
correlated, so rounds are resampled and not calls: a cluster bootstrap. When two engines are compared,
both are resampled with the same rounds, so that what slows down a whole round cancels out. Three
corrections keep the intervals from being too narrow:

- few rounds: the interval is widened by the ratio of Student's to the normal quantile and by
  ``sqrt(n / (n - 1))``, which the percentile bootstrap lacks;
- correlated rounds (a slow drift): it is widened by ``sqrt((1 + r) / (1 - r))`` with ``r`` the lag-1
  correlation of the ranks, corrected for its bias in short series (Kendall 1954). This is the
  variance inflation of the mean of an AR(1) series;
- fewer than `MIN_ROUNDS_FOR_INTERVAL` rounds give no interval: the extremes of five values cover
  their median with a probability of only 93.75 %.

Differences between two starts of the same engine (memory layout, for example) do not show within the
rounds of one start. With one start, the harness's A/A control estimates them, and `judge` takes them as
``floor`` and ``drift``; with several starts, `across_starts` includes them in the intervals.
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
"""One array of positive samples (milliseconds) per round."""

MIN_ROUNDS_FOR_INTERVAL = 6
_RESAMPLES = 2000
_BINS = 2048
_CONFIDENCE = 0.95
_MIN_SLOW_ROUNDS = 5
"""With fewer rounds that contain slow calls, their clustering cannot be estimated."""
_PERCENTILES = {"p90": 0.90, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; ``None`` with too few rounds."""

    value: float
    ci95: Interval | None


def smallest_sample(quantile: float, confidence: float = _CONFIDENCE) -> int:
    """Smallest sample size whose maximum bounds a quantile from above with this confidence.

    Without assuming a distribution, the largest of ``n`` independent samples exceeds the quantile
    ``q`` with probability ``1 - q**n``: 29 samples for p90, 59 for p95, 299 for p99, 2,995 for
    p99.9. With fewer samples the percentile has no upper bound and is not reported.

    Raises:
        ValueError: ``quantile`` or ``confidence`` is not within (0, 1).
    """
    if not (0.0 < quantile < 1.0 and 0.0 < confidence < 1.0):
        raise ValueError(f"quantile {quantile} and confidence {confidence} must lie within (0, 1)")
    return math.ceil(math.log1p(-confidence) / math.log(quantile))


def latency(samples: Floats) -> Latency:
    """Mean and percentiles of all samples of all rounds (never percentiles of percentiles).

    Args:
        samples: Milliseconds; all samples, at least one.

    Returns:
        Percentiles by linear interpolation between order statistics; ``None`` for percentiles that
        need more samples (see `smallest_sample`).
    """
    tails = {
        name: float(np.quantile(samples, q)) if len(samples) >= smallest_sample(q) else None
        for name, q in _PERCENTILES.items()
    }
    return Latency(mean=float(np.mean(samples)), p50=float(np.median(samples)), **tails)


def quantile_bounds(rounds: Rounds, quantile: float) -> tuple[float | None, float | None]:
    """Distribution-free one-sided 95 % lower and upper bounds of a quantile.

    The number of independent samples below the quantile is binomial, and the bounds are the order
    statistics that exceed it with 95 % (Conover, Practical Nonparametric Statistics, 3.2). Slow
    calls cluster in some rounds and are not independent, so the binomial uses the effective sample
    size, from the variation of the share of slow calls between rounds (the design effect of Korn
    and Graubard, 1998), at most the actual one. If only a few rounds have slow calls, this variation
    is unknown and each round counts as one sample.

    Args:
        rounds: Milliseconds.
        quantile: Within (0, 1).

    Returns:
        The lower and the upper bound; ``None`` for a bound that needs more samples (see
        `smallest_sample`).
    """
    from scipy.stats import binom

    ordered = np.sort(np.concatenate(rounds))
    n = len(ordered)
    effective = max(
        1, math.floor(n / _design_effect(rounds, float(np.quantile(ordered, quantile))))
    )
    # Of `effective` samples, at most k lie below the quantile with probability binom.cdf(k, ...).
    above = int(binom.ppf(_CONFIDENCE, effective, quantile))
    below = int(binom.ppf(1 - _CONFIDENCE, effective, quantile)) - 1
    upper = ordered[math.ceil((above + 1) / effective * n) - 1] if above < effective else None
    lower = ordered[math.floor((below + 1) / effective * n) - 1] if below >= 0 else None
    return None if lower is None else float(lower), None if upper is None else float(upper)


def _design_effect(rounds: Rounds, limit: float) -> float:
    """Variance of the share of samples above a limit, relative to independent samples."""
    slow = np.array([np.count_nonzero(r > limit) for r in rounds], np.float64)
    sizes = np.array([len(r) for r in rounds], np.float64)
    n, share = sizes.sum(), slow.sum() / sizes.sum()
    if len(rounds) < 2 or share == 0:
        return 1.0
    between = len(rounds) / (len(rounds) - 1) * float(np.sum((slow - share * sizes) ** 2)) / n**2
    effect: float = between * n / (share * (1 - share))
    if np.count_nonzero(slow) < min(_MIN_SLOW_ROUNDS, len(rounds)):
        # Too few to estimate the variation: each round counts as one sample.
        effect = max(effect, float(n) / len(rounds))
    return max(1.0, effect)


# --- estimates -----------------------------------------------------------------------------------


def median(rounds: Rounds, *, seed: int = 0) -> Estimate:
    """Median of all samples, with a bootstrap interval over rounds."""
    point = float(np.median(np.concatenate(rounds)))
    if len(rounds) < MIN_ROUNDS_FOR_INTERVAL:
        return Estimate(point, None)
    resampled = _weighted_medians(rounds, _multiplicities(len(rounds), seed))
    return Estimate(point, _interval(point, resampled, _widening(np.log(_medians(rounds)))))


def rate(rounds: Rounds, *, seed: int = 0) -> Estimate:
    """Calls per second of measured time: all calls over the sum of all their latencies.

    Unlike ``1 / median``, this is the rate actually achieved, including slow calls.
    """
    totals = np.array([np.sum(r) for r in rounds]) / 1e3
    return wall_rate(np.array([len(r) for r in rounds], np.float64), totals, seed=seed)


def wall_rate(work: Floats, seconds: Floats, *, seed: int = 0) -> Estimate:
    """Work per second: total work over total time, with a bootstrap interval over rounds.

    Args:
        work: Work done in each round, positive.
        seconds: Duration of each round.
        seed: Seed of the bootstrap.
    """
    point = float(work.sum() / seconds.sum())
    if len(work) < MIN_ROUNDS_FOR_INTERVAL:
        return Estimate(point, None)
    weights = _multiplicities(len(work), seed)
    resampled = (weights @ work) / (weights @ seconds)
    return Estimate(point, _interval(point, resampled, _widening(np.log(work / seconds))))


def ratio_of_medians(a: Rounds, b: Rounds, *, seed: int = 0) -> Estimate:
    """Speed of ``b`` relative to ``a``: median of ``a`` over median of ``b``, paired by round.

    Args:
        a: Rounds of the baseline, milliseconds.
        b: The same rounds of the candidate; ``b[i]`` was measured in the same round as ``a[i]``.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: The numbers of rounds differ.
    """
    if len(a) != len(b):
        raise ValueError(f"rounds cannot be paired: {len(a)} and {len(b)}")
    point = float(np.median(np.concatenate(a)) / np.median(np.concatenate(b)))
    if len(a) < MIN_ROUNDS_FOR_INTERVAL:
        return Estimate(point, None)
    weights = _multiplicities(len(a), seed)
    resampled = _weighted_medians(a, weights) / _weighted_medians(b, weights)
    differences = np.log(_medians(a)) - np.log(_medians(b))
    return Estimate(point, _interval(point, resampled, _widening(differences)))


def ratio_unpaired(a_medians: Floats, b_medians: Floats, *, seed: int = 0) -> Estimate:
    """Like `ratio_of_medians`, for two runs at different times, from their round medians.

    Changes between the runs (temperature, other processes, another start of the engine) do not show
    within either run, so this interval is too narrow by an unknown amount.
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
    """Widen an interval to include start-to-start variation.

    Uses Student's interval of the mean of the starts' logarithms, centered on the estimate; the result
    is never narrower than the original interval.

    Args:
        estimate: Estimate over all rounds.
        values: The same quantity for each start, positive; with fewer than three, the estimate is
            returned unchanged.
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
    """The verdict on a speed ratio, given the smallest effect of interest.

    - ``equivalent``: the whole interval, widened by ``drift`` on both sides, lies between
      ``1 / (1 + min_effect)`` and ``1 + min_effect``;
    - ``faster`` (``slower``): the whole interval lies above (below) one *and* the ratio is at least
      ``1 + e`` (at most ``1 / (1 + e)``), with ``e`` the larger of ``min_effect`` and ``floor``;
    - ``inconclusive``: otherwise.

    Bounds are symmetric on a log scale, so swapping the engines swaps the verdicts.

    Args:
        speed: Speed of the candidate relative to the baseline.
        min_effect: Smallest relative difference of interest, 0.02 for 2 %.
        floor: Upper bound of the A/A control's difference in this run.
        drift: Observed difference of the A/A control, which the interval does not include.
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
    """How often each of ``n`` rounds is drawn: resamples x n; each row adds up to n."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)


def _weighted_medians(rounds: Rounds, weights: Floats) -> Floats:
    """Median of the pooled samples for each row of ``weights`` (resamples x rounds).

    Sorting the pool for every resample would take seconds for 100,000 samples. Instead, the pool is
    sorted once into bins, which are narrowest at the median, and each resample only counts. The error
    in rank is less than a bin, and zero for up to `_BINS` samples.
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
    cumulative = np.cumsum(weights @ counts, axis=1)
    half = cumulative[:, -1:] / 2
    lower = np.sum(cumulative < half, axis=1)
    upper = np.minimum(np.sum(cumulative <= half, axis=1), len(first) - 1)
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

    Ranks are used so that one disturbed round does not mask the correlation of the others. The
    estimate's bias of about ``-(1 + 4 r) / n`` is corrected. Negative values become zero, because
    they must not narrow an interval.
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
