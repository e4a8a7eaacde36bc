"""Types of option values: texts with units, comma-separated lists, choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

from optimizer.errors import UsageError
from optimizer.options.declaration import ReadableError
from optimizer.units import (
    format_bytes,
    format_duration,
    format_pp,
    format_profile,
    format_share,
    parse_bytes,
    parse_duration,
    parse_pp,
    parse_profile,
    parse_share,
)

__all__ = [
    "BatchProfile",
    "Bytes",
    "Choices",
    "Duration",
    "FilePath",
    "Names",
    "Numbers",
    "Points",
    "Precision",
    "Share",
    "Source",
    "Space",
    "Texts",
]


def _reader(parse: Callable[[str], Any]) -> BeforeValidator:
    """A validator that parses text with a unit; a number is refused, because it has no unit."""

    def read(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, (tuple, list)):
            value = ":".join(map(str, value))  # an optimization profile, as numbers
        try:
            return parse(str(value))
        except UsageError as error:
            raise ReadableError(error.message, error.hint) from error

    return BeforeValidator(read)


def _writer(write: Callable[[Any], str]) -> PlainSerializer:
    return PlainSerializer(lambda value: None if value is None else write(value), when_used="json")


Duration = Annotated[float, _reader(parse_duration), _writer(format_duration)]
"""Seconds, given as ``10s`` or ``2min``."""
Points = Annotated[float, _reader(parse_pp), _writer(format_pp)]
"""Percentage points, given as ``0.5pp``."""
Share = Annotated[float, _reader(parse_share), _writer(format_share)]
"""A fraction of one, given as ``95%`` or ``0.95``."""
Bytes = Annotated[int, _reader(parse_bytes), _writer(format_bytes)]
"""Bytes, given as ``4GiB``."""
Space = Annotated[
    int,
    _reader(lambda text: 0 if text.strip() == "0B" else parse_bytes(text)),
    _writer(lambda size: "0B" if size == 0 else format_bytes(size)),
]
"""Bytes that may be none at all, given as ``8GiB`` or ``0B``."""
BatchProfile = Annotated[tuple[int, int, int], _reader(parse_profile), _writer(format_profile)]
"""Minimum, optimum and maximum number of images per call, given as ``1:8:32``."""
Precision = Annotated[
    Literal["fp32", "fp16", "bf16", "int8", "fp8", "mixed"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]
"""A precision, in any case (``INT8``)."""
Source = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
]
"""A file or folder, or a name (``digits:test``, ``resnet50``)."""
FilePath = Annotated[Path, PlainSerializer(str, when_used="json")]


def split(value: Any) -> Any:
    """Flatten ``"1,8"``, ``["1,8", "32"]`` or a single value to a list; keep ``None`` and dicts."""
    if value is None or isinstance(value, dict):
        return value
    items: Iterable[Any] = value if isinstance(value, (list, tuple)) else [value]
    flat: list[Any] = []
    for item in items:
        if isinstance(item, str):
            flat += [part.strip() for part in item.split(",") if part.strip()]
        else:
            flat.append(item)
    return flat


def _positive(value: Any) -> Any:
    """Parse positive whole numbers."""
    flat = split(value)
    if flat is None:
        return None
    for item in flat:
        text = str(item)
        if isinstance(item, bool) or not text.isdecimal() or int(text) < 1:
            raise ReadableError(f"{text!r} is not a positive whole number", "numbers such as 1,8")
    if not flat:
        raise ReadableError("no number given", "numbers such as 1,8")
    return [int(str(item)) for item in flat]


Names = Annotated[tuple[str, ...], BeforeValidator(split), PlainSerializer(list, when_used="json")]
"""Comma-separated words."""
Texts = Annotated[tuple[str, ...], PlainSerializer(list, when_used="json")]
"""Texts that may contain commas; the flag is repeated."""
Numbers = Annotated[
    tuple[int, ...], BeforeValidator(_positive), PlainSerializer(list, when_used="json")
]
"""Comma-separated positive whole numbers."""
Choices = BeforeValidator(split)
"""Parses comma-separated choices."""
