"""Paired statistics: whether a difference in accuracy is real, and whether it is small enough.

Both models see the same images, so all that matters are the *discordant* images: ``losses`` (the
reference is right, the candidate wrong) and ``gains`` (the other way round). The drop in accuracy
is ``(losses - gains) / n``.

The gate is a test of non-inferiority: it passes when the whole interval of the drop lies below the
limit, fails when it lies above, and is inconclusive otherwise. ("p > 0.05" is no pass: a small
sample always reaches it.)

Interval of the drop
--------------------
Tango's score interval is right with zero discordant images, where the textbook (Wald) interval is
[0, 0]. Its lower bound is too high when nearly all discordant images are losses: computed exactly,
its coverage falls to 92.9 % (n = 540, drop = discordance = 0.75 %). The same score with a
correction for skewness fixes that side and errs on the other (92.8 % at n = 1000, drop =
discordance = 0.5 %). Each bound here is the wider of the two: over n = 500 to 50,000, discordance
0.2 % to 5 % and drops of 0 to 2 pp its exact coverage is at least 94.6 %
(``benchmarks/statistics_simulation.py``). For a candidate that loses more than it gains the upper
bound, the one that lets a gate pass, is Tango's.

Sources: Tango (1998), Statistics in Medicine 17, 891-908 (score and constrained estimate); Laud
(2017), Pharmaceutical Statistics 16, 334-348 (correction for skewness); Wilson (1927); McNemar
(1947), in its exact form.
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
    """What a comparison on the same images came to.

    Attributes:
        n: Images.
        losses: Images the reference has right and the candidate wrong.
        gains: Images the candidate has right and the reference wrong.
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
    """Wilson's score interval of one proportion, as fractions of one.

    Raises:
        ValueError: ``n < 1`` or ``successes`` outside 0 to ``n``.
    """
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def mcnemar_p(losses: int, gains: int) -> float:
    """Exact two-sided McNemar test: are losses and gains equally likely? 1.0 without any."""
    from scipy.stats import binomtest

    if losses + gains == 0:
        return 1.0
    return float(binomtest(losses, losses + gains, 0.5).pvalue)


# --- interval of the drop ----------------------------------------------------------------------


def drop_interval(losses: int, gains: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of the drop ``(losses - gains) / n``, as fractions of one; see the module's text.

    Raises:
        ValueError: Counts that cannot be.
    """
    Paired(n, losses, gains)
    low, high = drop_intervals(losses, gains, n, confidence)
    return float(low), float(high)


def drop_intervals(
    losses: ArrayLike, gains: ArrayLike, n: ArrayLike, confidence: float = 0.95
) -> tuple[_Array, _Array]:
    """`drop_interval` for arrays of counts of one (broadcast) shape.

    Returns:
        Lower and upper bounds, float64, of that shape.
    """
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1: {confidence}")
    z = float(-ndtri((1 - confidence) / 2))
    b, c, total = (np.array(x, dtype=np.float64) for x in np.broadcast_arrays(losses, gains, n))
    upper = _upper_bound(b, c, total, z)
    # Swapping losses and gains mirrors the problem, so one search serves both bounds.
    lower = -_upper_bound(c, b, total, z)
    return lower, upper


def _upper_bound(b: _Array, c: _Array, n: _Array, z: float) -> _Array:
    """Largest drop that neither score rejects."""
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
    # No variance: the drop is certain under the constraint, and any other count excludes it.
    certain = np.where(b - c - n * drop < 0, -np.inf, 0.0)
    return np.asarray(np.where(variance > 0, corrected, certain))


def _discordance_at(b: _Array, c: _Array, n: _Array, drop: _Array) -> _Array:
    """Most likely probability of a discordant image if the drop is ``drop``.

    Tango's closed form: of all loss and gain probabilities whose difference is ``drop``, the
    likelihood is largest where the gain solves a quadratic equation.
    """
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    gain = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    return np.asarray(2 * np.maximum(gain, 0) + drop)


# --- gates -------------------------------------------------------------------------------------


def gate(interval: Interval, limit: float) -> VerdictName:
    """Judge an interval by a limit in the same unit: surely below, surely above, or neither."""
    low, high = interval
    if high < limit:
        return "pass"
    if low > limit:
        return "fail"
    return "inconclusive"


def worst_verdict(*verdicts: VerdictName | None) -> VerdictName:
    """The gravest of several verdicts; ``None`` (not judged) counts as a pass."""
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def images_needed(
    paired: Paired, limit: float, *, power: float = 0.8, confidence: float = 0.95
) -> int | None:
    """Images on which the gate would decide, were the true rates those observed.

    The usual sample size for a paired difference, with the variance at the limit under the null
    hypothesis and at the observed drop under the alternative::

        n = ((z_alpha * sd(limit) + z_power * sd(drop)) / (limit - drop))^2

    ``z_alpha`` belongs to one side of the interval. The discordance at the limit is the one that
    the interval itself would assume, which is at least the limit: with no discordant image at all
    this still asks for enough images.

    Args:
        paired: What was seen.
        limit: Largest allowed drop, as a fraction of one.
        power: Chance that the gate decides on that many images.
        confidence: Of the gate's interval.

    Returns:
        Images in all (not in addition), or ``None`` if the drop equals the limit, which no number
        of images decides.
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
    """Signal to quantization noise, decibel, from two sums of squares.

    Returns:
        ``None`` without noise: the outputs are identical.
    """
    if noise == 0:
        return None
    return float(-math.inf if signal == 0 else 10 * math.log10(signal / noise))


def sums_of_squares(reference: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """Sum of squares of ``reference`` and of the difference of ``other`` to it, in float64."""
    exact = reference.astype(np.float64).ravel()
    difference = other.astype(np.float64).ravel() - exact
    return float(exact @ exact), float(difference @ difference)
