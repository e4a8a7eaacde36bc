"""Several batches of one engine at the same time: a thread a stream, each with its own session.

A session belongs to the thread that uses it, so binding, calling and reading the outputs of a
stream all happen in that stream's thread. All streams begin together and each calls again and
again until the time is over, as `optimizer.profiling.bench_worker.time_calls` does for one.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from optimizer.engines import Bound, Session

__all__ = ["Streams", "work_and_wall"]

T = TypeVar("T")
TimeCalls = Callable[..., tuple[NDArray[np.int64], int]]


class Streams:
    """Sessions of one engine, each in a thread of its own.

    Args:
        sessions: One a stream; they compute beside each other.
        time_calls: What times the calls of one stream.
    """

    def __init__(self, sessions: Sequence[Session], time_calls: TimeCalls) -> None:
        self._sessions = sessions
        self._time_calls = time_calls
        self._bound: list[Bound] = []
        self._threads = [ThreadPoolExecutor(1, f"stream-{i}") for i in range(len(sessions))]

    def bind(self, images: NDArray[Any]) -> None:
        """Bind the batch to every stream; each has its own copy of it."""
        self._bound = [
            thread.submit(session.bind, images.copy()).result()
            for thread, session in zip(self._threads, self._sessions, strict=True)
        ]

    def time(self, **limits: Any) -> tuple[NDArray[np.int64], int, NDArray[np.int32]]:
        """Call all streams until the time is over.

        Args:
            **limits: As for `optimizer.profiling.bench_worker.time_calls`, for each stream.

        Returns:
            Calls x 4 as from ``time_calls``, the lead-ins of all streams first; how many calls are
            lead-in; the stream of each call.
        """
        begin = threading.Barrier(len(self._bound))

        def one(bound: Bound) -> tuple[NDArray[np.int64], int]:
            begin.wait()
            return self._time_calls(bound, **limits)

        collecting = gc.isenabled()
        gc.disable()  # here, because the streams would switch it on for each other
        try:
            found = self._all(one)
        finally:
            if collecting:
                gc.enable()
        pieces = [(calls[:lead], i) for i, (calls, lead) in enumerate(found)]
        pieces += [(calls[lead:], i) for i, (calls, lead) in enumerate(found)]
        owners = [np.full(len(calls), i, np.int32) for calls, i in pieces]
        lead_in = sum(lead for _, lead in found)
        return np.concatenate([calls for calls, _ in pieces]), lead_in, np.concatenate(owners)

    def outputs(self) -> list[NDArray[Any]]:
        """The outputs of every stream's last call."""
        return self._all(lambda bound: bound.output())

    def _all(self, do: Callable[[Bound], T]) -> list[T]:
        """Do something with every bound batch, in its own thread, all at the same time."""
        futures = [t.submit(do, b) for t, b in zip(self._threads, self._bound, strict=True)]
        return [future.result() for future in futures]


def work_and_wall(
    start_ns: NDArray[np.int64], end_ns: NDArray[np.int64], stream: NDArray[np.int32]
) -> tuple[float, float]:
    """How much was computed in how much time by the clock, while all streams were at work.

    The time is that from the last stream's first call to the first stream's end: outside of it
    some streams were idle and the others ran undisturbed. A call that lies partly within counts by
    the part of it that does.

    Args:
        start_ns: When each call began.
        end_ns: When it was done.
        stream: Which stream made it.

    Returns:
        Calls (not a whole number) and seconds; of all calls, if the streams never worked at the
        same time.
    """
    own = [stream == i for i in np.unique(stream)]
    begin = max(int(start_ns[mine].min()) for mine in own)
    end = min(int(end_ns[mine].max()) for mine in own)
    if end <= begin:
        return float(len(start_ns)), float(end_ns.max() - start_ns.min()) / 1e9
    inside = np.minimum(end_ns, end) - np.maximum(start_ns, begin)
    parts = np.clip(inside, 0, None) / np.maximum(end_ns - start_ns, 1)
    return float(parts.sum()), (end - begin) / 1e9
