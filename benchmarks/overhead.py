"""Measures the overhead of our session over the library's own calls, interleaved in one process.

Both start the same computation on the same engine, memory and stream and wait for it; ours goes
through `Bound.enqueue` and `Bound.wait`. The only difference is Python code, so it matters only at batch 1
with a CUDA graph.
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

__all__ = ["LIMIT", "Overhead", "interleave", "overhead", "raw_call"]

LIMIT = 0.01
"""The designed maximum overhead, as a share of a raw call."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Overhead:
    """The time of our call relative to the raw call, minus one.

    Attributes:
        share: The overhead of the medians; negative if ours was faster.
        ci95: Its confidence interval, by bootstrap over blocks.
        ours_ms, raw_ms: Medians.
        verdict: ``pass`` if the interval is at or below the limit, ``fail`` if it is above, else
            ``inconclusive``.
    """

    share: float
    ci95: tuple[float, float]
    ours_ms: float
    raw_ms: float
    verdict: str


def interleave(
    ours: Call, raw: Call, *, blocks: int = 40, calls: int = 50, warm_up: int = 20, seed: int = 0
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Time two calls in interleaved blocks, in random order within each pair.

    Returns:
        For ours and for the raw call: an array per block with the milliseconds of every call.
    """
    for call in (ours, raw):
        for _ in range(warm_up):
            call()
    order = random.Random(seed)
    samples: dict[int, list[NDArray[np.float64]]] = {0: [], 1: []}
    pair = (ours, raw)
    for _ in range(blocks):
        for index in order.sample((0, 1), 2):
            samples[index].append(_block(pair[index], calls))
    return samples[0], samples[1]


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
    """The overhead from interleaved blocks.

    Raises:
        ValueError: There are too few blocks for an interval.
    """
    # `ratio_of_medians` compares speeds: that of the raw call relative to ours is our time over its.
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
    """The library calls equivalent to ``bound``, which must have run once.

    Args:
        session: A `TensorRtSession`.
        bound: A batch bound to it.
        runtime: The module ``cuda.bindings.runtime``.
    """
    stream = session.stream.handle
    wait = runtime.cudaStreamSynchronize
    graph = bound._graph  # noqa: SLF001 - the same graph that our call launches
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
