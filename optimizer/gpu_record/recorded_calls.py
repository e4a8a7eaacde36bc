"""Calls to TensorRT and CUDA, written down with what they returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Calls", "Recorded"]

_MOST = 4000


@dataclass
class Calls:
    """All calls of a session, in order.

    Every call is a list: the object, what is done (``call``, ``get``, ``set``, ``told``), the name,
    arguments, and what came back (``returned`` or ``raised`` with a value).
    """

    entries: list[list[Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def begin(self, owner: str, what: str, name: str, arguments: Any) -> list[Any]:
        """Write a call down; what it returns is added afterwards."""
        entry: list[Any] = [owner, what, name, plain(arguments)]
        if len(self.entries) < _MOST:
            self.entries.append(entry)
        return entry

    def wrap(self, kind: str, target: Any) -> Recorded:
        """An object whose calls are written down."""
        number = self.counts.get(kind, 0)
        self.counts[kind] = number + 1
        return Recorded(target, f"{kind} {number}", self)


class Recorded:
    """Stands before an object of a library and writes down what is asked of it."""

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
    """The object behind one that is recorded."""
    return object.__getattribute__(value, "_recorded")[0] if isinstance(value, Recorded) else value


def plain(value: Any) -> Any:
    """A value as JSON; an object of the library by the name of its class."""
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
    """Write down what the library tells a profiler."""
    kind = type(profiler)
    report = kind.report_layer_time

    def told(self: Any, layer_name: str, ms: float) -> None:
        calls.begin("profiler", "told", "report_layer_time", [layer_name, ms])
        report(self, layer_name, ms)

    kind.report_layer_time = told
