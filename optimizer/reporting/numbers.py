"""Number formatting, the same for HTML, Markdown and the terminal.

Every function accepts ``None`` (unknown) and non-finite values and never formats them as zero.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from optimizer.results import Interval

__all__ = [
    "DASH",
    "decimals",
    "fixed",
    "interval",
    "mebibytes",
    "moment",
    "percent",
    "seconds",
    "short_digest",
    "significant",
]

DASH = "–"
_MINUS = "−"


def decimals(value: float, digits: int = 3) -> int:
    """Decimal places that show ``value`` with ``digits`` significant digits."""
    if not math.isfinite(value) or value == 0:
        return max(0, digits - 1)
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def fixed(value: float | None, places: int, *, sign: str = "") -> str:
    """``value`` with ``places`` decimal places and commas between thousands.

    Args:
        value: The number; ``None`` and NaN give a dash, infinities the symbol ∞.
        places: Decimal places.
        sign: ``"+"`` puts a plus sign before positive numbers.
    """
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    text = f"{value:{sign},.{places}f}"
    if not text.strip("+-0.,"):  # a rounded zero has no sign
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits; below 0.0001 as ``3.80e-6``."""
    if value is None:
        return DASH
    if 0 < abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", _MINUS)
    return fixed(value, decimals(value, digits))


def interval(bounds: Interval | None, places: int, *, sign: str = "") -> str | None:
    """``[low, high]`` with as many decimal places as the estimate; ``None`` if unknown."""
    if bounds is None:
        return None
    low, high = (fixed(b, places, sign=sign) for b in bounds)
    return f"[{low}, {high}]"


def percent(share: float | None, places: int = 2) -> str:
    """A fraction of one in percent, without the percent sign."""
    return fixed(None if share is None else share * 100, places)


def mebibytes(size: float | None) -> str:
    """Bytes in MiB."""
    return DASH if size is None else significant(size / 2**20)


def seconds(value: float | None) -> str:
    """Seconds with three significant digits, at most milliseconds."""
    return DASH if value is None else fixed(value, min(3, decimals(value)))


def short_digest(sha256: str) -> str:
    """The first 12 characters of a digest, enough to tell files apart by eye."""
    return sha256[:12]


def moment(created: str) -> str:
    """An ISO 8601 time as ``2026-01-31 14:05 UTC``; any other text unchanged."""
    try:
        parsed = datetime.fromisoformat(created)
    except ValueError:
        return created
    if parsed.tzinfo is None:
        return f"{parsed:%Y-%m-%d %H:%M}"
    return f"{parsed.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
