"""Replays a recorded session: the libraries return the recorded results.

The session must make the recorded calls in the same order; the error for a difference names both calls.
Memory is on the host, so pinned buffers can be written.
"""

from __future__ import annotations

import ctypes
from typing import Any

from optimizer.engines.tensorrt.session import OpenEngine
from optimizer.errors import ResnetOptError

Entry = list[Any]


class Different(AssertionError):
    """The session makes another call than the recorded one."""


class Player:
    """Returns the recorded results, in order."""

    def __init__(self, entries: list[Entry], trt: Any) -> None:
        self.entries = entries
        self.trt = trt
        self.at = 0
        self.memory: list[Any] = []
        self.profilers: list[Any] = []
        self.differences: list[str] = []

    def answer(self, owner: str, kind: str, name: str, arguments: tuple[Any, ...] = ()) -> Any:
        """The result of the next recorded call, which must be this one."""
        self.send_callbacks()
        if self.at >= len(self.entries):
            raise self._differs(f"{owner}.{name} comes after the end of the record")
        entry = self.entries[self.at]
        self.at += 1
        if entry[:3] != [owner, kind, name]:
            raise self._differs(f"{owner} {kind} {name}; recorded: {' '.join(entry[:3])}")
        texts = [a for a in arguments if isinstance(a, str)]
        if (
            texts
            != [a for a in entry[3] if isinstance(a, str) and not a.startswith("<")][: len(texts)]
        ):
            raise self._differs(f"{owner}.{name}{arguments}; recorded: {entry[3]}")
        self.send_callbacks()
        return self._value(entry, name, arguments) if len(entry) > 4 else None

    def _differs(self, message: str) -> Different:
        self.differences.append(message)
        return Different(message)

    def send_callbacks(self) -> None:
        """Pass the next recorded callbacks to the newest profiler."""
        while self.at < len(self.entries) and self.entries[self.at][1] == "told":
            self.profilers[-1].report_layer_time(*self.entries[self.at][3])
            self.at += 1

    def _value(self, entry: Entry, name: str, arguments: tuple[Any, ...]) -> Any:
        outcome, value = entry[4], entry[5]
        if outcome == "raised":
            kind, message = value
            raise RuntimeError(message) if kind == "RuntimeError" else ResnetOptError(message)
        if name in {"malloc", "malloc_host"}:
            self.memory.append(ctypes.create_string_buffer(max(1, arguments[0])))
            return ctypes.addressof(self.memory[-1])
        if isinstance(value, str) and value.partition(".")[0] in {"TensorIOMode", "DataType"}:
            kind, _, member = value.partition(".")
            return getattr(getattr(self.trt, kind), member)
        return value


class Played:
    """A stand-in for a library object that takes its results from a player."""

    def __init__(self, player: Player, owner: str, properties: set[str]) -> None:
        object.__setattr__(self, "_played", (player, owner, properties))

    def __getattr__(self, name: str) -> Any:
        player, owner, properties = object.__getattribute__(self, "_played")
        if name in properties:
            return player.answer(owner, "get", name)

        def called(*arguments: Any) -> Any:
            value = player.answer(owner, "call", name, arguments)
            if name == "create_engine_inspector":
                return played(player, "inspector")
            return value

        return called

    def __setattr__(self, name: str, value: Any) -> None:
        player, owner, _ = object.__getattribute__(self, "_played")
        player.answer(owner, "set", name)
        if name == "profiler":
            player.profilers.append(value)


def played(player: Player, kind: str) -> Played:
    """The next object of a kind: ``context 0``, ``context 1`` …"""
    number = getattr(player, f"made_{kind}", 0)
    setattr(player, f"made_{kind}", number + 1)
    owner = f"{kind} {number}"
    properties = {entry[2] for entry in player.entries if entry[0] == owner and entry[1] == "get"}
    return Played(player, owner, properties)


def replayed(entries: list[Entry], trt: Any) -> tuple[OpenEngine, Player]:
    """An engine that returns the recorded results."""
    player = Player(entries, trt)

    def make_context() -> Any:
        context = player.answer("engine 0", "call", "create_execution_context")
        return None if context is None else played(player, "context")

    engine, api = played(player, "engine"), played(player, "cuda")
    opened = OpenEngine(trt=trt, engine=engine, make_context=make_context, api=api)
    return opened, player
