"""What our session costs over the library's own calls: the two in turn, in one process.

Both start the same computation on the same engine, memory and stream and wait for it; ours goes
through `Bound.enqueue` and `Bound.wait`. What differs is Python, so it matters at batch 1 with a CUDA
graph and nowhere else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.profiling.intervals import ratio_of_medians

__all__ = ["LIMIT", "Overhead", "in_turn", "overhead", "raw_call"]

LIMIT = 0.01
"""The share of a raw call that the session is designed to stay below."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Overhead:
    """Time of our call over the raw call, less one.

    Attributes:
        share: Of the medians; negative if ours happened to be faster.
        ci95: Its interval, by bootstrap over blocks.
        ours_ms, raw_ms: Medians.
        verdict: ``pass`` if the interval lies at or below the limit, ``fail`` if above it, else
            ``inconclusive``.
    """

    share: float
    ci95: tuple[float, float]
    ours_ms: float
    raw_ms: float
    verdict: str


def in_turn(
    ours: Call, raw: Call, *, blocks: int = 40, calls: int = 50, warm_up: int = 20, seed: int = 0
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Time two calls in blocks whose order within each pair is drawn anew.

    Returns:
        Milliseconds of every call, an array a block, of ours and of the raw call.
    """
    for call in (ours, raw):
        for _ in range(warm_up):
            call()
    order = random.Random(seed)
    found: dict[int, list[NDArray[np.float64]]] = {0: [], 1: []}
    both = (ours, raw)
    for _ in range(blocks):
        for which in order.sample((0, 1), 2):
            found[which].append(_block(both[which], calls))
    return found[0], found[1]


def _block(call: Call, calls: int) -> NDArray[np.float64]:
    clock = time.perf_counter_ns
    samples = np.empty(calls)
    for index in range(calls):
        started = clock()
        call()
        samples[index] = clock() - started
    return samples / 1e6


def overhead(
    ours: Sequence[NDArray[np.float64]],
    raw: Sequence[NDArray[np.float64]],
    *,
    limit: float = LIMIT,
    seed: int = 0,
) -> Overhead:
    """Judge blocks that were measured in turn.

    Raises:
        ValueError: Too few blocks for an interval.
    """
    # The ratio is a speed: of the raw call in units of ours, which is time over time.
    ratio = ratio_of_medians(list(ours), list(raw), seed=seed)
    if ratio.ci95 is None:
        raise ValueError(f"{len(ours)} blocks are too few for an interval")
    low, high = ratio.ci95[0] - 1, ratio.ci95[1] - 1
    verdict = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    return Overhead(
        share=ratio.value - 1,
        ci95=(low, high),
        ours_ms=float(np.median(np.concatenate(ours))),
        raw_ms=float(np.median(np.concatenate(raw))),
        verdict=verdict,
    )


def raw_call(session: Any, bound: Any, runtime: Any) -> Call:
    """The library's own calls that do what ``bound`` does; ``bound`` must have run once.

    Args:
        session: A TensorRT session of ours.
        bound: A batch bound by it.
        runtime: The module ``cuda.bindings.runtime``.
    """
    stream = session.stream.handle
    wait = runtime.cudaStreamSynchronize
    graph = bound._graph  # noqa: SLF001 - the very graph that our own call starts
    if graph is not None:
        launch, handle = runtime.cudaGraphLaunch, graph.handle

        def call() -> None:
            launch(handle, stream)
            wait(stream)

        return call
    start = session._execution.context.execute_async_v3  # noqa: SLF001 - the same context

    def execute() -> None:
        start(stream)
        wait(stream)

    return execute
