"""The harness: measures several engines in interleaved rounds.

Each engine at each setting (a *cell*) has its own worker process, which is started, loaded and warmed
up while the others are idle. Then, in each round, every cell computes for a fraction of a second, in
random order, so that slow changes of the machine affect all cells alike. The state of the machine is
read between rounds. No sample is discarded: only the *lead-in* of each block, fixed in advance by
position and never by value, is excluded from the statistics, and it is kept in the raw samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError
from optimizer.profiling.conditions import EnergyMeter, Gpus, Monitor, gpus_of
from optimizer.profiling.streams import work_and_wall
from optimizer.profiling.worker_process import Worker, WorkerFailed
from optimizer.progress import Progress
from optimizer.results import Conditions, EngineStatus

__all__ = ["MIN_ROUNDS", "Block", "Cell", "Limits", "Measured", "Measurement", "measure", "settled"]

MIN_ROUNDS = 12
"""With fewer rounds, coverage of the intervals is too low; exceed the time budget instead."""
_ROUNDS = 40
_SHORTEST_BLOCK_S, _LONGEST_BLOCK_S = 0.01, 0.25
_CALLS_PER_BLOCK = 3
_LEAD_IN = 0.05  # of a block
_WARM_UP = 0.5  # of the duration
_WINDOWS = 3
_CALLS_PER_WINDOW = 3
_OVERRUN = 2.0
_LONGEST_REST_S, _SHORT_REST_S = 0.25, 0.02
_LEAK_SHARE, _LEAK_BYTES = 0.10, 64 << 20


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One engine at one setting.

    Attributes:
        name: Display name; unique for each setting of a measurement.
        engine: An engine file or a checkpoint.
        batch: Images per call.
        image_size: Pixels; ``None`` for the engine's own size.
        threads: Compute threads of all streams together.
        device: GPU, such as ``cuda:1``; ``None`` for the first GPU, and for CPU engines.
        streams: Concurrent calls.
        variant: Variant of the backend; see `optimizer.engines.Opening`.
        cache: Folder where libraries that compile when an engine is opened store the result.
    """

    name: str
    engine: Path
    batch: int
    image_size: int | None
    threads: int
    device: str | None = None
    streams: int = 1
    variant: str | None = None
    cache: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time budget and timeouts.

    Attributes:
        duration_s: Time for the rounds of one cell, including lead-ins and rests.
        call_timeout_s: Timeout of a call.
        load_timeout_s: Timeout of loading an engine.
        min_rounds: Minimum number of rounds, even if they take longer than ``duration_s``.
    """

    duration_s: float
    call_timeout_s: float = 60.0
    load_timeout_s: float = 600.0
    min_rounds: int = MIN_ROUNDS

    @property
    def block_s(self) -> float:
        """Duration of one block without its lead-in."""
        return min(_LONGEST_BLOCK_S, max(_SHORTEST_BLOCK_S, self.duration_s / _ROUNDS))


@dataclass(frozen=True)
class Block:
    """The calls of one cell in one round."""

    round: int
    calls: NDArray[np.int64]
    """Calls x (start, upload, compute, download), nanoseconds; the lead-in comes first."""
    lead_in: int
    stream: NDArray[np.int32]
    """Stream of each call."""
    start: int = 0
    """Number of the engine's start."""

    @property
    def spans_ms(self) -> NDArray[np.float64]:
        """Calls after the lead-in x (upload, compute, download), milliseconds."""
        return self.calls[self.lead_in :, 1:] / 1e6

    @property
    def work_and_wall(self) -> tuple[float, float]:
        """Number of calls after the lead-in, and their wall-clock seconds."""
        timed = self.calls[self.lead_in :]
        ends = timed.sum(axis=1)
        return work_and_wall(timed[:, 0], ends, self.stream[self.lead_in :])


@dataclass
class Measured:
    """The measurement of one cell."""

    cell: Cell
    status: EngineStatus = "ok"
    error: str | None = None
    start_s: float | None = None
    load_s: float | None = None
    first_inference_ms: float | None = None
    image_size: int | None = None
    warmup_calls: int = 0
    settled: bool = False
    blocks: list[Block] = field(default_factory=list)
    first_round: int = 0
    """Number of its first round when several measurements are merged."""
    peak_rss_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    joules: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measurement:
    """The measurement of all cells.

    Attributes:
        cells: All cells in the requested order, including failed ones.
        conditions: Machine state between rounds.
        rounds: Number of measured rounds.
    """

    cells: list[Measured]
    conditions: Conditions
    rounds: int


def measure(cells: Sequence[Cell], limits: Limits, *, seed: int, progress: Progress) -> Measurement:
    """Measure all cells in randomly interleaved rounds.

    An engine that fails is marked as failed and left out of the remaining rounds.

    Args:
        cells: The cells to measure.
        limits: Time budget and timeouts.
        seed: Seed of the input images and of the order within rounds.
        progress: Receives progress updates, between steps only.

    Raises:
        UsageError: An engine cannot be opened, or not with this batch and image size. Raised before
            anything is measured.
    """
    runners: list[_Runner] = []
    gpus = gpus_of((cell.engine, cell.device) for cell in cells)
    energy = EnergyMeter(gpus=gpus)
    monitor: Monitor | None = None
    try:
        progress.start("load and warm up", total=len(cells))
        for cell in cells:
            runner = _Runner(cell, limits, energy)
            runners.append(runner)
            runner.begin(seed)
            progress.advance(note=cell.name)
        progress.finish()
        alive = [r for r in runners if r.alive]
        monitor = Monitor([r.pid for r in alive], gpus=gpus)
        rounds, notes = _rounds(alive, limits, monitor, seed, progress)
        for runner in runners:
            runner.end(gpus)
        notes += [f"{r.result.cell.name}: {note}" for r in runners for note in r.result.notes]
        return Measurement([r.result for r in runners], monitor.summary(notes), rounds)
    finally:
        if monitor is not None:
            monitor.close()
        for runner in runners:
            runner.close()


def _rounds(
    runners: list[_Runner], limits: Limits, monitor: Monitor, seed: int, progress: Progress
) -> tuple[int, list[str]]:
    if not runners:
        return 0, []
    budget = limits.duration_s * len(runners)
    affordable = int(budget / sum(r.block_cost_s for r in runners))
    planned = max(limits.min_rounds, affordable)
    order = np.random.default_rng(seed)
    progress.start("measure", total=planned)
    started = time.monotonic()
    notes = []
    if affordable < planned:
        notes.append(
            f"calls are so slow that the minimum of {planned} rounds takes longer than the "
            f"requested {limits.duration_s:.3g} s"
        )
    done = 0
    monitor.begin()
    for number in range(planned):
        for i in order.permutation(len(runners)):
            if runners[i].alive:
                with monitor.computing():
                    runners[i].block(number)
        monitor.read()
        done = number + 1
        progress.advance()
        if not any(r.alive for r in runners):
            break
        if done >= limits.min_rounds and time.monotonic() - started > _OVERRUN * budget:
            notes.append(f"stopped after {done} of {planned} rounds: they took too long")
            break
    progress.finish(f"{done} rounds")
    return done, notes


def settled(windows: Sequence[NDArray[np.float64]]) -> bool:
    """Whether warm-up is complete because the last windows agree.

    They agree if their medians are within 2 % of each other, or if each median lies between the
    quartiles of every other window: on a noisy machine medians differ by more, and a longer warm-up
    would not help.

    Args:
        windows: Latencies of each window, in order.
    """
    if len(windows) <= _WINDOWS:  # the first window includes deferred loading
        return False
    last = windows[-_WINDOWS:]
    medians = [float(np.median(w)) for w in last]
    if max(medians) <= 1.02 * min(medians):
        return True
    quartiles = [np.quantile(w, [0.25, 0.75]) for w in last]
    return all(low <= m <= high for low, high in quartiles for m in medians)


class _Runner:
    """One cell and its worker; a failure is recorded and ends only this worker."""

    def __init__(self, cell: Cell, limits: Limits, energy: EnergyMeter) -> None:
        self.result = Measured(cell)
        self._limits = limits
        self._worker: Worker | None = None
        self._call_s = 0.0
        self._rest_s, self._longest_rest_s = 0.0, _LONGEST_REST_S
        self._busy: list[float] = []
        self._memory: list[int] = []
        self._energy = energy

    @property
    def alive(self) -> bool:
        """Whether the worker is usable."""
        return self.result.status == "ok"

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        assert self._worker is not None
        return self._worker.pid

    @property
    def block_s(self) -> float:
        """Duration of a block of this cell without its lead-in."""
        return max(self._limits.block_s, _CALLS_PER_BLOCK * self._call_s)

    @property
    def block_cost_s(self) -> float:
        """Expected duration of a block with its lead-in and the rest after it."""
        return self.block_s + max(_LEAD_IN * self.block_s, self._call_s) + self._rest_s

    def begin(self, seed: int) -> None:
        """Start the worker, load the engine, run the first inference and warm up."""
        cell, result, limits = self.result.cell, self.result, self._limits
        try:
            self._worker = worker = Worker(cell.threads)
            result.start_s = worker.start_s
            loaded, _ = worker.ask(
                "load",
                timeout_s=limits.load_timeout_s,
                path=str(cell.engine),
                threads=cell.threads,
                device=cell.device,
                streams=cell.streams,
                variant=cell.variant,
                cache=None if cell.cache is None else str(cell.cache),
            )
            result.load_s = loaded["load_s"]
            if len(loaded["runtimes"]) > 1:
                result.notes.append(
                    f"its process loaded several runtimes: {', '.join(loaded['runtimes'])}"
                )
            prepared, _ = worker.ask(
                "prepare",
                timeout_s=limits.load_timeout_s,
                batch=cell.batch,
                image_size=cell.image_size,
                seed=seed,
            )
            result.first_inference_ms = prepared["first_inference_ms"]
            result.image_size = prepared["image_size"]
            result.notes += prepared["notes"]
            self._warm_up()
        except WorkerFailed as failure:
            if failure.usage:
                raise UsageError(f"{cell.name}: {failure.message}") from None
            self._fail(failure)

    def _warm_up(self) -> None:
        windows: list[NDArray[np.float64]] = []
        end = time.monotonic() + _WARM_UP * self._limits.duration_s
        while not settled(windows):
            if len(windows) > _WINDOWS and time.monotonic() > end:
                self.result.notes.append("its warm-up did not settle")
                break
            block = self._time_calls(
                self._limits.block_s, min_calls=_CALLS_PER_WINDOW, longest_rest_s=0.0
            )
            self.result.warmup_calls += len(block.calls)
            windows.append(block.spans_ms.sum(axis=1))
        self.result.settled = settled(windows)
        self._call_s = float(np.median(windows[-1])) / 1e3
        # One more call, to measure how long the threads take to become idle.
        block = self._time_calls(0.0, min_calls=1, longest_rest_s=self._longest_rest_s)
        self.result.warmup_calls += len(block.calls)

    def block(self, number: int) -> None:
        """Run one block of round ``number``."""
        self._energy.begin()
        try:
            block = self._time_calls(
                self.block_s,
                number=number,
                min_calls=1,
                lead_in_s=_LEAD_IN * self.block_s,
                min_lead_in=1,
                longest_rest_s=self._longest_rest_s,
            )
        except WorkerFailed as failure:
            self._fail(failure)
            return
        if (joules := self._energy.joules()) is not None:
            self.result.joules = (self.result.joules or 0.0) + joules
        self.result.blocks.append(block)

    def _time_calls(self, seconds: float, *, number: int = -1, **limits: Any) -> Block:
        assert self._worker is not None
        # The worker responds after all calls, each of which has its own timeout.
        calls = limits["min_calls"] + limits.get("min_lead_in", 0)
        timeout_s = seconds * (1 + _LEAD_IN) + calls * self._limits.call_timeout_s
        header, arrays = self._worker.ask("time", timeout_s=timeout_s, seconds=seconds, **limits)
        self.result.peak_rss_bytes = header["peak_rss_bytes"]
        if header["rss_bytes"] is not None and number >= 0:
            self._memory.append(header["rss_bytes"])
        self._rest_s = header["rest_s"]
        if number >= 0:
            self._busy.append(header["busy"])
        if header["busy"] > 0:  # do not wait repeatedly for threads that never idle
            self._longest_rest_s = _SHORT_REST_S
        return Block(number, arrays["calls"], header["lead_in"], arrays["stream"])

    def end(self, gpus: Gpus) -> None:
        """Record GPU memory, busy threads and leaks after the last round."""
        result = self.result
        if self.alive:
            result.gpu_memory_bytes = gpus.memory_bytes(self.pid)
            busy = float(np.median(self._busy)) if self._busy else 0.0
            if busy > 0:
                result.notes.append(
                    f"its threads keep running between its blocks ({busy:.0%} of a core) and slow "
                    "down the other engines"
                )
            if (grown := leaked(self._memory)) is not None:
                result.notes.append(f"its memory grew by {grown / 2**20:.0f} MiB during the rounds")

    def _fail(self, failure: WorkerFailed) -> None:
        # An engine that computed before has failed, even if a device is missing now.
        self.result.status = "failed" if self.result.blocks else failure.status
        self.result.error = failure.message
        self.close()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def leaked(memory: Sequence[int]) -> int | None:
    """Growth of resident memory in bytes if it looks like a leak, else ``None``.

    It does if memory rises from third to third of the rounds, by more than 10 % and 64 MiB from the
    first to the last: a cache fills up once and then stops growing.

    Args:
        memory: Bytes after each round.
    """
    third = len(memory) // 3
    if third < 2:
        return None
    first, middle, last = memory[:third], memory[third:-third], memory[-third:]
    grown = min(last) - max(first)
    rising = min(last) >= max(middle) >= min(middle) >= max(first)
    if rising and grown > max(_LEAK_BYTES, _LEAK_SHARE * max(first)):
        return math.floor(last[-1] - first[0])
    return None
