"""The request for one LoadGen test, which is passed to the child process."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OBSERVED", "Request"]

OBSERVED = "observed.json"
"""File in the request's folder with the child process's own measurements."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One LoadGen test.

    Attributes:
        engine: The engine file or checkpoint.
        scenario: LoadGen's scenario.
        folder: Existing folder for the logs.
        duration_s: Minimum duration.
        threads: Compute threads.
        batch: Images computed together in server and offline.
        image_size: Pixels; ``None`` for the engine's own size.
        device: GPU, such as ``cuda:1``; ``None`` for the first GPU, and for CPU engines.
        seed: Seed of the images and of the order of queries.
        queries_per_s: Server: rate of the Poisson process.
        max_latency_ms: Server: limit on p99.
        min_queries: Server: minimum number of queries.
    """

    engine: str
    scenario: str
    folder: str
    duration_s: float
    threads: int
    batch: int
    image_size: int | None = None
    device: str | None = None
    seed: int = 0
    queries_per_s: float | None = None
    max_latency_ms: float | None = None
    min_queries: int = 1
