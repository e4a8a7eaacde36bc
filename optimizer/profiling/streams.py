"""Concurrent calls of one engine: one thread per stream, each with its own session.

A session belongs to the thread that uses it, so binding, calling and reading the outputs of a stream
all happen in that stream's thread. All streams start together, and each repeats its calls as
`optimizer.profiling.bench_worker.time_calls` does for one.
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
    """Sessions of one engine, each in its own thread.

    Args:
        sessions: One session per stream.
        time_calls: Function that times the calls of one stream.
    """

    def __init__(self, sessions: Sequence[Session], time_calls: TimeCalls) -> None:
        self._sessions = sessions
        self._time_calls = time_calls
        self._bound: list[Bound] = []
        self._threads = [ThreadPoolExecutor(1, f"stream-{i}") for i in range(len(sessions))]

    def bind(self, images: NDArray[Any]) -> None:
        """Bind a copy of the batch to every stream."""
        self._bound = [
            thread.submit(session.bind, images.copy()).result()
            for thread, session in zip(self._threads, self._sessions, strict=True)
        ]

    def time(self, **limits: Any) -> tuple[NDArray[np.int64], int, NDArray[np.int32]]:
        """Time concurrent calls of all streams.

        Args:
            **limits: Arguments of `optimizer.profiling.bench_worker.time_calls`, for each stream.

        Returns:
            Calls x 4 as from ``time_calls``, with the lead-ins of all streams first; the number of
            lead-in calls; the stream of each call.
        """
        barrier = threading.Barrier(len(self._bound))

        def time_stream(bound: Bound) -> tuple[NDArray[np.int64], int]:
            barrier.wait()
            return self._time_calls(bound, **limits)

        gc_enabled = gc.isenabled()
        gc.disable()  # for all streams: the first one to finish would enable it for the others
        try:
            timed = self._all(time_stream)
        finally:
            if gc_enabled:
                gc.enable()
        pieces = [(calls[:lead], i) for i, (calls, lead) in enumerate(timed)]
        pieces += [(calls[lead:], i) for i, (calls, lead) in enumerate(timed)]
        owners = [np.full(len(calls), i, np.int32) for calls, i in pieces]
        lead_in = sum(lead for _, lead in timed)
        return np.concatenate([calls for calls, _ in pieces]), lead_in, np.concatenate(owners)

    def outputs(self) -> list[NDArray[Any]]:
        """The outputs of every stream's last call."""
        return self._all(lambda bound: bound.output())

    def _all(self, do: Callable[[Bound], T]) -> list[T]:
        """Apply a function to every bound batch concurrently, each in its own thread."""
        futures = [t.submit(do, b) for t, b in zip(self._threads, self._bound, strict=True)]
        return [future.result() for future in futures]


def work_and_wall(
    start_ns: NDArray[np.int64], end_ns: NDArray[np.int64], stream: NDArray[np.int32]
) -> tuple[float, float]:
    """Number of calls and wall-clock seconds during which all streams were computing.

    The interval starts when the last stream starts and ends when the first stream ends; outside of it
    some streams are idle and the others run faster. A call that is partly inside counts by that
    fraction.

    Args:
        start_ns: Start of each call.
        end_ns: End of each call.
        stream: Stream of each call.

    Returns:
        Calls (fractional) and seconds; of all calls if the streams never ran concurrently.
    """
    masks = [stream == i for i in np.unique(stream)]
    begin = max(int(start_ns[mask].min()) for mask in masks)
    end = min(int(end_ns[mask].max()) for mask in masks)
    if end <= begin:
        return float(len(start_ns)), float(end_ns.max() - start_ns.min()) / 1e9
    overlap = np.minimum(end_ns, end) - np.maximum(start_ns, begin)
    parts = np.clip(overlap, 0, None) / np.maximum(end_ns - start_ns, 1)
    return float(parts.sum()), (end - begin) / 1e9
