"""Records calls to TensorRT and CUDA with their results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TextIO

__all__ = ["Calls", "Recorded"]

_MAX_ENTRIES = 4000


@dataclass
class Calls:
    """All calls of a session, in order.

    Every entry is a list: the object, the kind of access (``call``, ``get``, ``set``, or ``told`` for a
    callback from the library), the name, the arguments, and the result (``returned`` or ``raised``, and
    a value).

    Args:
        stream: Receives each entry before the call is made, one line of JSON each: if a call ends the
            process, it is the last line.
    """

    stream: TextIO | None = None
    entries: list[list[Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def begin(self, owner: str, kind: str, name: str, arguments: Any) -> list[Any]:
        """Record a call; its result is appended to the returned entry afterwards."""
        entry: list[Any] = [owner, kind, name, plain(arguments)]
        if len(self.entries) < _MAX_ENTRIES:
            self.entries.append(entry)
            if self.stream is not None:
                self.stream.write(json.dumps(entry) + "\n")
                self.stream.flush()
        return entry

    def wrap(self, kind: str, target: Any) -> Recorded:
        """Wrap an object so that its calls are recorded."""
        number = self.counts.get(kind, 0)
        self.counts[kind] = number + 1
        return Recorded(target, f"{kind} {number}", self)


class Recorded:
    """A proxy for a library object that records every access."""

    def __init__(self, target: Any, owner: str, calls: Calls) -> None:
        object.__setattr__(self, "_recorded", (target, owner, calls))

    def __getattr__(self, name: str) -> Any:
        target, owner, calls = object.__getattribute__(self, "_recorded")
        value = getattr(target, name)
        if callable(value):
            return _call(value, owner, name, calls)
        calls.begin(owner, "get", name, []).extend(["returned", plain(value)])
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        target, owner, calls = object.__getattribute__(self, "_recorded")
        calls.begin(owner, "set", name, [value])
        if name == "profiler":
            _watch_profiler(value, calls)
        setattr(target, name, real(value))


def _call(function: Callable[..., Any], owner: str, name: str, calls: Calls) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        entry = calls.begin(owner, "call", name, arguments)
        try:
            value = function(*(real(argument) for argument in arguments))
        except Exception as error:
            entry.extend(["raised", [type(error).__name__, str(error)]])
            raise
        entry.extend(["returned", plain(value)])
        if name == "create_engine_inspector":
            return calls.wrap("inspector", value)
        return value

    return called


def real(value: Any) -> Any:
    """The object behind a proxy; any other value unchanged."""
    return object.__getattribute__(value, "_recorded")[0] if isinstance(value, Recorded) else value


def plain(value: Any) -> Any:
    """A value as JSON; a library object as the name of its class."""
    if isinstance(value, Recorded):
        return f"<{object.__getattribute__(value, '_recorded')[1]}>"
    if value is None or (
        isinstance(value, bool | int | float | str) and not isinstance(value, Enum)
    ):
        return value
    if isinstance(value, list | tuple) or type(value).__name__ == "Dims":
        return [plain(item) for item in value]
    if hasattr(type(value), "__members__"):
        return str(value)
    return f"<{type(value).__name__}>"


def _watch_profiler(profiler: Any, calls: Calls) -> None:
    """Record what the library reports to a profiler."""
    kind = type(profiler)
    report = kind.report_layer_time

    def record_report(self: Any, layer_name: str, ms: float) -> None:
        calls.begin("profiler", "told", "report_layer_time", [layer_name, ms])
        report(self, layer_name, ms)

    kind.report_layer_time = record_report
