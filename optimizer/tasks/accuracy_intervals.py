"""The intervals that judge a hop: for a number of images chosen beforehand, or for any number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.results import Interval, IntervalKind
from optimizer.tasks.anytime_statistics import anytime_drop_interval, anytime_rate_interval
from optimizer.tasks.paired_statistics import Paired, wilson_interval

__all__ = ["ANYTIME", "FIXED", "Intervals"]


@dataclass(frozen=True)
class Intervals:
    """One kind of 95 % intervals; the two kinds are never mixed in one result.

    Attributes:
        kind: Its name in results.
        words: Its name in sentences.
        drop_pp: Interval of a drop, percentage points.
        rate: Interval of a share, from successes and images, as fractions of one.
    """

    kind: IntervalKind
    words: str
    drop_pp: Callable[[Paired], Interval]
    rate: Callable[[int, int], Interval]


def _anytime_drop_pp(paired: Paired) -> Interval:
    low, high = anytime_drop_interval(paired.losses, paired.gains, paired.n)
    return 100 * low, 100 * high


FIXED = Intervals("fixed", "95 % interval", lambda paired: paired.interval_pp, wilson_interval)
ANYTIME = Intervals(
    "anytime",
    "95 % interval at any number of images",
    _anytime_drop_pp,
    anytime_rate_interval,
)
