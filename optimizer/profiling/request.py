"""What is asked of one LoadGen test, as it crosses into the test's process."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SEEN", "Request"]

SEEN = "seen.json"
"""What the process saw: a file in the folder of the request."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run.

    Attributes:
        engine: The engine file or checkpoint.
        scenario: LoadGen's scenario.
        folder: Where the logs go; it exists.
        duration_s: How long, at least.
        threads: Threads to compute with.
        batch: Images to compute together in server and offline.
        image_size: ``None`` for the engine's own.
        device: Which GPU, ``cuda:1``; ``None`` for the first, and for engines of the CPU.
        seed: Decides images and the order of queries.
        queries_per_s: Server: the rate of the Poisson process.
        max_latency_ms: Server: the bound on p99.
        fewest_queries: Server: how many queries, at least.
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
    fewest_queries: int = 1
