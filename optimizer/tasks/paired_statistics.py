"""Paired statistics: whether a difference in accuracy is real, and whether it is small enough.

Both models see the same images, so only the *discordant* images matter: ``losses`` (reference
correct, candidate wrong) and ``gains`` (the reverse). The drop in accuracy is
``(losses - gains) / n``.

The gate is a non-inferiority test: it passes if the whole interval of the drop lies below the
limit, fails if it lies above, and is inconclusive otherwise. ("p > 0.05" is not a pass: a small
sample always reaches it.)

Interval of the drop
--------------------
Tango's score interval is valid with zero discordant images, where the textbook (Wald) interval is
[0, 0]. Its lower bound is too high if nearly all discordant images are losses: the exact coverage
falls to 92.9 % (n = 540, drop = discordance = 0.75 %). The same score with a skewness correction
fixes that side but is too narrow on the other (92.8 % at n = 1000, drop = discordance = 0.5 %). Each
bound here is the wider of the two: over n = 500 to 50,000, discordance 0.2 % to 5 % and drops of 0
to 2 pp, the exact coverage is at least 94.6 % (``benchmarks/statistics_simulation.py``). For a
candidate that loses more than it gains, the upper bound, which decides whether the gate passes, is
Tango's.

Sources: Tango (1998), Statistics in Medicine 17, 891-908 (score and constrained estimate); Laud
(2017), Pharmaceutical Statistics 16, 334-348 (skewness correction); Wilson (1927); McNemar (1947),
in its exact form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optimizer.results import Interval, VerdictName

__all__ = [
    "Paired",
    "drop_interval",
    "drop_intervals",
    "gate",
    "images_needed",
    "mcnemar_p",
    "sqnr_db",
    "sums_of_squares",
    "wilson_interval",
    "worst_verdict",
]

_Array = NDArray[np.float64]
_BISECTIONS = 50  # halves an interval of length 1 to less than 1e-15


@dataclass(frozen=True)
class Paired:
    """Counts of a comparison on the same images.

    Attributes:
        n: Images.
        losses: Images that the reference classifies correctly and the candidate does not.
        gains: Images that the candidate classifies correctly and the reference does not.
    """

    n: int
    losses: int
    gains: int

    def __post_init__(self) -> None:
        if self.n < 1 or self.losses < 0 or self.gains < 0 or self.losses + self.gains > self.n:
            raise ValueError(f"impossible counts: {self}")

    @property
    def drop(self) -> float:
        """Loss of accuracy as a fraction of one; negative is a gain."""
        return (self.losses - self.gains) / self.n

    @property
    def drop_pp(self) -> float:
        """Loss of accuracy in percentage points."""
        return 100 * self.drop

    @property
    def interval_pp(self) -> Interval:
        """95 % interval of the drop, percentage points."""
        low, high = drop_interval(self.losses, self.gains, self.n)
        return 100 * low, 100 * high

    @property
    def p(self) -> float:
        """Exact McNemar p-value."""
        return mcnemar_p(self.losses, self.gains)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, as fractions of one.

    Raises:
        ValueError: ``n < 1`` or ``successes`` outside 0 to ``n``.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(losses: int, gains: int) -> float:
    """p-value of the exact two-sided McNemar test that losses and gains are equally likely.

    Returns:
        1.0 without losses and gains.
    """
    from scipy.stats import binomtest

    if losses + gains == 0:
        return 1.0
    return float(binomtest(losses, losses + gains, 0.5).pvalue)


# --- interval of the drop ----------------------------------------------------------------------


def drop_interval(losses: int, gains: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of the drop ``(losses - gains) / n``, as fractions of one; see the module docstring.

    Raises:
        ValueError: The counts are impossible.
    """
    Paired(n, losses, gains)
    low, high = drop_intervals(losses, gains, n, confidence)
    return float(low), float(high)


def drop_intervals(
    losses: ArrayLike, gains: ArrayLike, n: ArrayLike, confidence: float = 0.95
) -> tuple[_Array, _Array]:
    """`drop_interval` for arrays of counts that broadcast to one shape.

    Returns:
        Lower and upper bounds, float64, of that shape.
    """
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1: {confidence}")
    z = float(-ndtri((1 - confidence) / 2))
    b, c, total = (np.array(x, dtype=np.float64) for x in np.broadcast_arrays(losses, gains, n))
    upper = _upper_bound(b, c, total, z)
    # Swapping losses and gains mirrors the problem, so one search gives both bounds.
    lower = -_upper_bound(c, b, total, z)
    return lower, upper


def _upper_bound(b: _Array, c: _Array, n: _Array, z: float) -> _Array:
    """The larger of the upper bounds that the two scores give."""
    bounds = []
    for skew_weight in (0.0, z * z - 1):
        low, high = (b - c) / n, np.ones_like(n)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            rejected = _score(b, c, n, middle, skew_weight) < -z
            high = np.where(rejected, middle, high)
            low = np.where(rejected, low, middle)
        bounds.append(high)
    return np.asarray(np.maximum(*bounds))


def _score(b: _Array, c: _Array, n: _Array, drop: _Array, skew_weight: float) -> _Array:
    """Tango's score statistic at ``drop``, less ``skew_weight`` times a sixth of its skewness."""
    discordant = _discordance_at(b, c, n, drop)
    variance = np.maximum(discordant - drop**2, 0)
    third_moment = drop - 3 * discordant * drop + 2 * drop**3
    with np.errstate(divide="ignore", invalid="ignore"):
        score = (b - c - n * drop) / np.sqrt(n * variance)
        skewness = third_moment / (np.sqrt(n) * variance**1.5)
        corrected = score - skew_weight * skewness / 6
    # Without variance the constraint fixes the drop; any other count excludes it.
    certain = np.where(b - c - n * drop < 0, -np.inf, 0.0)
    return np.asarray(np.where(variance > 0, corrected, certain))


def _discordance_at(b: _Array, c: _Array, n: _Array, drop: _Array) -> _Array:
    """Maximum-likelihood probability of a discordant image, given the drop.

    Tango's closed form: among all loss and gain probabilities that differ by ``drop``, the
    likelihood is largest where the gain probability solves a quadratic equation.
    """
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    gain = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    return np.asarray(2 * np.maximum(gain, 0) + drop)


# --- gates -------------------------------------------------------------------------------------


def gate(interval: Interval, limit: float) -> VerdictName:
    """Compare an interval with a limit in the same unit: entirely below, entirely above, or neither."""
    low, high = interval
    if high < limit:
        return "pass"
    if low > limit:
        return "fail"
    return "inconclusive"


def worst_verdict(*verdicts: VerdictName | None) -> VerdictName:
    """The worst of several verdicts; ``None`` (not judged) counts as a pass."""
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def images_needed(
    paired: Paired, limit: float, *, power: float = 0.8, confidence: float = 0.95
) -> int | None:
    """Number of images on which the gate would decide if the observed rates were the true ones.

    The standard sample size for a paired difference, with the variance at the limit under the null
    hypothesis and at the observed drop under the alternative::

        n = ((z_alpha * sd(limit) + z_power * sd(drop)) / (limit - drop))^2

    ``z_alpha`` is one-sided. The discordance at the limit is the one that the interval itself would
    assume, which is at least the limit, so the result is large enough even without any discordant
    image.

    Args:
        paired: The observed counts.
        limit: Largest allowed drop, as a fraction of one.
        power: Probability that the gate decides on that many images.
        confidence: Confidence of the gate's interval.

    Returns:
        Total number of images, not additional ones; ``None`` if the drop equals the limit, which no
        number of images can decide.
    """
    from scipy.special import ndtri

    gap = limit - paired.drop
    if abs(gap) < 1e-9:
        return None
    b, c, n, drop = np.array([paired.losses, paired.gains, paired.n, limit], np.float64)[:, None]
    at_limit = math.sqrt(max(_discordance_at(b, c, n, drop).item() - limit**2, 0.0))
    discordant = (paired.losses + paired.gains) / paired.n
    at_drop = math.sqrt(max(discordant - paired.drop**2, 0.0))
    z_alpha, z_power = float(ndtri((1 + confidence) / 2)), float(ndtri(power))
    return math.ceil(((z_alpha * at_limit + z_power * at_drop) / gap) ** 2)


# --- signals -----------------------------------------------------------------------------------


def sqnr_db(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio in decibels, from two sums of squares.

    Returns:
        ``None`` without noise: the outputs are identical.
    """
    if noise == 0:
        return None
    return float(-math.inf if signal == 0 else 10 * math.log10(signal / noise))


def sums_of_squares(reference: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """Sums of squares of ``reference`` and of ``other - reference``, in float64."""
    exact = reference.astype(np.float64).ravel()
    difference = other.astype(np.float64).ravel() - exact
    return float(exact @ exact), float(difference @ difference)
