"""Intervals that hold at every number of images at once, so that a validation may stop early.

The intervals of `paired_statistics` are for one number of images that was chosen beforehand. Looking
at them after every batch and stopping as soon as they decide passes bad engines far more often than
5 %. The intervals here stay valid however often they are looked at.

For a supposed mean ``m`` a player bets on each image: the wealth is multiplied by
``1 + bet * (x - m)``, where ``x`` is 1 for a loss, -1 for a gain and 0 for an image on which both
agree. If ``m`` is the true mean, the expected wealth never grows, so by Ville's inequality it ever
exceeds ``1 / alpha`` with a probability of at most ``alpha``. The interval contains every ``m``
against which the wealth has stayed below that. The bet is not guessed: the wealth is the average
over players with constant bets, weighted by the arcsine distribution. It therefore depends on the
counts alone, not on the order of the images, and grows almost as fast as that of the best constant
bet, which would have to know the true rates.

The images must come in a random order. (A stratified order would not do: the mean of the next image
would then depend on the images before it.)

Sources: Waudby-Smith and Ramdas (2023), Journal of the Royal Statistical Society B 86, 1-27
(betting, confidence sequences); Cover and Ordentlich (1996), IEEE Transactions on Information Theory
42, 348-363 (mixture over constant bets); Ville (1939).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optimizer.results import Interval

__all__ = ["anytime_drop_bounds", "anytime_drop_interval", "anytime_rate_interval", "log_wealth"]

_Array = NDArray[np.float64]
_PLAYERS = 32
_BETS: _Array = np.sin(np.pi / 2 * (np.arange(_PLAYERS) + 0.5) / _PLAYERS) ** 2
"""Quantiles of the arcsine distribution: shares of the largest bet that cannot lose everything."""
_BISECTIONS = 50


def anytime_drop_interval(losses: int, gains: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of the drop ``(losses - gains) / n``, as fractions of one, valid at every ``n``.

    Args:
        losses: Images that only the reference classifies correctly.
        gains: Images that only the candidate classifies correctly.
        n: Images so far, in random order.
        confidence: Probability that the interval contains the true drop at every ``n``.

    Raises:
        ValueError: The counts are impossible.
    """
    low, high = anytime_drop_bounds([losses], [gains], [n], confidence)
    return float(low[0]), float(high[0])


def anytime_drop_bounds(
    losses: ArrayLike, gains: ArrayLike, n: ArrayLike, confidence: float = 0.95
) -> tuple[_Array, _Array]:
    """`anytime_drop_interval` for arrays of counts of equal length.

    Returns:
        Lower and upper bounds, float64, of that length.
    """
    above, below, total = (np.asarray(x, dtype=np.float64) for x in (losses, gains, n))
    if np.any((above < 0) | (below < 0) | (total < 1) | (above + below > total)):
        raise ValueError(f"impossible counts: {losses!r} losses and {gains!r} gains of {n!r}")
    # Mirroring the differences turns the lower bound into an upper one.
    upper = _upper_bound(above, below, total, -1.0, confidence)
    lower = -_upper_bound(below, above, total, -1.0, confidence)
    return lower, upper


def anytime_rate_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of a proportion such as the share of flips, valid at every ``n``.

    Raises:
        ValueError: ``n < 1`` or ``successes`` outside 0 to ``n``.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"impossible counts: {successes} of {n}")
    hits, total, none = np.array([[successes], [n], [0]], dtype=np.float64)
    upper = _upper_bound(hits, none, total, 0.0, confidence)
    # The mirrored values are 0 and -1; shifted by one they are again 1 and 0.
    lower = 1 - _upper_bound(total - hits, none, total, 0.0, confidence)
    return float(lower[0]), float(upper[0])


def log_wealth(above: _Array, below: _Array, total: _Array, supposed: _Array) -> _Array:
    """Logarithm of the wealth after betting that the mean is smaller than ``supposed``.

    Args:
        above: Counts of the value 1, shape (k,).
        below: Counts of the value -1, shape (k,).
        total: Counts of all values, including 0, shape (k,).
        supposed: Supposed means, each less than 1, shape (k,).

    Returns:
        Shape (k,). It is 0 before the first value, and ever exceeds ``log(1 / alpha)`` with a
        probability of at most ``alpha`` if the mean is at least ``supposed``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bets = -_BETS / (1 - supposed)[:, None]
        counts = (above, below, total - above - below)
        factors = (1 - supposed, -1 - supposed, -supposed)
        growth = sum(
            np.where(count[:, None] > 0, count[:, None] * np.log1p(bets * factor[:, None]), 0.0)
            for count, factor in zip(counts, factors, strict=True)
        )
    largest = np.max(growth, axis=1)
    return np.asarray(largest + np.log(np.mean(np.exp(growth - largest[:, None]), axis=1)))


def _upper_bound(
    above: _Array, below: _Array, total: _Array, least: float, confidence: float
) -> _Array:
    """Largest mean, from ``least`` to 1, that betting on smaller values has not refuted.

    The wealth grows with the supposed mean, so bisection finds it. Each side of an interval gets
    half of the error.
    """
    limit = math.log(2 / (1 - confidence))
    low, high = np.full_like(total, least), np.ones_like(total)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        refuted = log_wealth(above, below, total, middle) > limit
        high = np.where(refuted, middle, high)
        low = np.where(refuted, low, middle)
    return high
