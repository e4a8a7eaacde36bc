"""Stops a training at the end of a step when the process is asked to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from optimizer.errors import ResnetOptError

__all__ = ["StopRequest", "Stopped", "watch_signals"]


class Stopped(ResnetOptError):  # noqa: N818 - it is the expected answer to a request
    """The training was asked to end, and has written a checkpoint."""


class StopRequest:
    """The signal that asked to stop, or ``None``."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextlib.contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and Ctrl-C into a request; a second one acts at once.

    Only the main thread receives signals; elsewhere nothing is watched.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: Any) -> None:
        received = signal.Signals(number)
        if request.signal is None:
            request.signal = received
            return
        handler = before[received]
        if callable(handler):
            handler(number, frame)
        else:
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
