"""Values with units, as written on the command line and in recipes.

=================  ==========================================  ===================
kind               accepted                                    parsed as
=================  ==========================================  ===================
percentage points  ``1pp``, ``0.5pp``, ``0.5 pp``              1.0 (points)
share              ``1%``, ``0.5 %``, ``0.01``                 0.01 (fraction)
duration           ``10s``, ``200ms``, ``50us``, ``2min``      10.0 (seconds)
bytes              ``4GiB``, ``512MiB``, ``64KiB``, ``1GB``    4294967296
=================  ==========================================  ===================

A share is given in ``%``, a difference of two shares in ``pp``: ``--max-drop 1%`` is refused,
because it could also mean 1 % of the accuracy.
"""

from __future__ import annotations

import math
import re

from optimizer.errors import UsageError

__all__ = [
    "format_bytes",
    "format_duration",
    "format_pp",
    "format_profile",
    "format_share",
    "parse_bytes",
    "parse_duration",
    "parse_pp",
    "parse_profile",
    "parse_share",
]

_PATTERN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%µ]*)\s*")
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def _split(text: str, accepted: str) -> tuple[float, str]:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(f"cannot read {text!r}", hint=accepted)
    number = float(match[1])
    if not math.isfinite(number) or number < 0:
        raise UsageError(f"{text!r} is out of range", hint=accepted)
    return number, match[2]


def parse_pp(text: str) -> float:
    """Percentage points: ``parse_pp("0.5pp")`` is 0.5.

    Raises:
        UsageError: Malformed, negative, or above 100.
    """
    accepted = "percentage points such as 1pp or 0.5pp"
    number, unit = _split(text, accepted)
    if unit.lower() != "pp":
        raise UsageError(f"{text!r} has no unit pp", hint=accepted)
    if number > 100:
        raise UsageError(f"{text!r} is more than 100 percentage points", hint=accepted)
    return number


def parse_share(text: str) -> float:
    """A share: ``parse_share("1%")`` is 0.01; a bare number is a fraction of one.

    Raises:
        UsageError: Malformed, negative, above one, or a number of one or more without ``%``.
    """
    accepted = "a share such as 1% or 0.01"
    number, unit = _split(text, accepted)
    if unit not in {"", "%"}:
        raise UsageError(f"{text!r} is not a share", hint=accepted)
    if unit == "" and number >= 1:
        raise UsageError(
            f"{text!r} is ambiguous: {number:g} % or {100 * number:g} %", hint=accepted
        )
    share = number / 100 if unit == "%" else number
    if share > 1:
        raise UsageError(f"{text!r} is more than 100 %", hint=accepted)
    return share


def parse_duration(text: str) -> float:
    """A duration in seconds: ``parse_duration("200ms")`` is 0.2.

    Raises:
        UsageError: Malformed, without a unit, or zero.
    """
    accepted = "a duration such as 10s, 200ms or 2min"
    number, unit = _split(text, accepted)
    if unit not in _SECONDS:
        raise UsageError(f"{text!r} has no unit of time", hint=accepted)
    if number == 0:
        raise UsageError(f"{text!r} must be more than zero", hint=accepted)
    return number * _SECONDS[unit]


def parse_bytes(text: str) -> int:
    """A number of bytes: ``parse_bytes("4GiB")`` is 4294967296; ``GB`` is 10^9.

    Raises:
        UsageError: Malformed, without a unit, zero, or not a whole number of bytes.
    """
    accepted = "a size such as 4GiB, 512MiB or 1GB"
    number, unit = _split(text, accepted)
    if unit not in _BYTES:
        raise UsageError(f"{text!r} has no unit of bytes", hint=accepted)
    size = number * _BYTES[unit]
    if size < 1 or size != int(size):
        raise UsageError(f"{text!r} is not a whole number of bytes", hint=accepted)
    return int(size)


def parse_profile(text: str) -> tuple[int, int, int]:
    """An optimization profile: ``parse_profile("1:8:32")`` is (1, 8, 32), images min, opt, max.

    Raises:
        UsageError: Malformed, or not ordered.
    """
    accepted = "min:opt:max images such as 1:8:32"
    parts = text.split(":")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"cannot read the profile {text!r}", hint=accepted)
    minimum, optimum, maximum = (int(part) for part in parts)
    if not 1 <= minimum <= optimum <= maximum:
        raise UsageError(f"the profile {text!r} is not ordered, or starts below 1", hint=accepted)
    return minimum, optimum, maximum


# --- formatting: each function is the inverse of its parser ---------------------------------------


def format_pp(points: float) -> str:
    """``format_pp(0.5)`` is ``0.5pp``."""
    return f"{_number(points)}pp"


def format_share(share: float) -> str:
    """``format_share(0.95)`` is ``95%``; a fraction if the percentage would not parse back exactly."""
    text = f"{_number(round(100 * share, 10))}%"
    return text if parse_share(text) == share else _number(share)


def format_duration(seconds: float) -> str:
    """``format_duration(0.2)`` is ``200ms``: the largest unit with a whole number of 1-3 digits."""
    for unit in ("h", "min", "s", "ms", "us"):
        text = f"{_number(round(seconds / _SECONDS[unit], 9))}{unit}"
        whole = text.removesuffix(unit)
        if whole.isdecimal() and len(whole) <= 3 and _duration_of(text) == seconds:
            return text
    return f"{_number(seconds)}s"


def _duration_of(text: str) -> float:
    """A duration in seconds; unlike `parse_duration`, it accepts ``0s``."""
    number, unit = _split(text, "a duration")
    return number * _SECONDS[unit]


def format_bytes(size: int) -> str:
    """``format_bytes(4294967296)`` is ``4GiB``: the largest unit with a whole number."""
    for unit in ("TiB", "GiB", "MiB", "KiB", "TB", "GB", "MB", "kB"):
        if size >= _BYTES[unit] and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def format_profile(profile: tuple[int, int, int]) -> str:
    """``format_profile((1, 8, 32))`` is ``1:8:32``."""
    return ":".join(map(str, profile))


def _number(value: float) -> str:
    """The shortest text that parses to the same number."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
