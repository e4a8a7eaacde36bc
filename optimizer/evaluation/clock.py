"""Where the time of a validation goes: computing each hop, and waiting for images."""

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
    """Measures from its creation; CPU seconds cover all threads of this process."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._pass_s = 0.0
        self._waiting_s = 0.0
        self._cpu_s: dict[str, float] = {}
        self._reading_cpu_s: dict[str, float] = {}
        self._images: dict[str, int] = {}

    @contextlib.contextmanager
    def computing(self, name: str) -> Iterator[None]:
        """Charge the CPU time of the block to a hop, or to `CONSISTENCY`."""
        with _charged(self._cpu_s, name):
            yield

    @contextlib.contextmanager
    def reading(self, name: str, images: int) -> Iterator[None]:
        """Charge the CPU time of the block to turning a hop's outputs into predictions."""
        with _charged(self._reading_cpu_s, name):
            yield
        self._images[name] = self._images.get(name, 0) + images

    def waiting_for(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Yield the batches and record the time spent waiting for each."""
        pass_started = time.perf_counter()
        source = iter(batches)
        while True:
            wait_started = time.perf_counter()
            batch = next(source, None)
            self._waiting_s += time.perf_counter() - wait_started
            if batch is None:
                break
            yield batch
        self._pass_s += time.perf_counter() - pass_started

    def result(self, decoding_cpu_s: float) -> Timing:
        """The times measured so far.

        Args:
            decoding_cpu_s: CPU seconds of decoding and preprocessing, in all processes.
        """
        return Timing(
            wall_s=time.perf_counter() - self._started,
            pass_s=self._pass_s,
            waiting_s=self._waiting_s,
            decoding_cpu_s=decoding_cpu_s,
            hops_cpu_s={name: s for name, s in self._cpu_s.items() if name != CONSISTENCY},
            consistency_cpu_s=self._cpu_s.get(CONSISTENCY, 0.0),
            reading_cpu_s=dict(self._reading_cpu_s),
            images_computed=dict(self._images),
        )


@contextlib.contextmanager
def _charged(account: dict[str, float], name: str) -> Iterator[None]:
    before = time.process_time()
    try:
        yield
    finally:
        account[name] = account.get(name, 0.0) + time.process_time() - before
