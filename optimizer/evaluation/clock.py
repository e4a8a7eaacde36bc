"""Where the time of a validation goes: who computes, and who waits for images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from optimizer.results import Timing

__all__ = ["CONSISTENCY", "Clock"]

CONSISTENCY = "batch consistency"

_T = TypeVar("_T")


class Clock:
    """Counts from its creation on; CPU seconds are those of all threads of this process."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._pass_s = 0.0
        self._waiting_s = 0.0
        self._cpu_s: dict[str, float] = {}

    @contextlib.contextmanager
    def computing(self, name: str) -> Iterator[None]:
        """Book the CPU time of the block on a hop, or on `CONSISTENCY`."""
        before = time.process_time()
        try:
            yield
        finally:
            self._cpu_s[name] = self._cpu_s.get(name, 0.0) + time.process_time() - before

    def waiting_for(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Give the batches on and book the time that each takes to come."""
        began = time.perf_counter()
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self._waiting_s += time.perf_counter() - asked
            if batch is None:
                break
            yield batch
        self._pass_s += time.perf_counter() - began

    def result(self, decoding_cpu_s: float) -> Timing:
        """What was counted up to now.

        Args:
            decoding_cpu_s: CPU seconds of decoding and preprocessing, in whatever process.
        """
        return Timing(
            wall_s=time.perf_counter() - self._started,
            pass_s=self._pass_s,
            waiting_s=self._waiting_s,
            decoding_cpu_s=decoding_cpu_s,
            hops_cpu_s={name: s for name, s in self._cpu_s.items() if name != CONSISTENCY},
            consistency_cpu_s=self._cpu_s.get(CONSISTENCY, 0.0),
        )
