"""The harness: several engines measured side by side, so that what is compared is the engines.

One worker process an engine and batch size (a *cell*), each started, loaded and warmed up while
the others are idle. Then rounds: in each one every cell computes for a fraction of a second, in an
order drawn anew, so that whatever the machine does in the long run hits all cells alike. The state
of the machine is read between rounds. Nothing measured is thrown away: of a block only its
*lead-in*, fixed beforehand by position and never by value, is left out of the statistics, and it
is kept among the raw samples.
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
from optimizer.profiling.conditions import EnergyMeter, Gpus, Monitor
from optimizer.profiling.process import Worker, WorkerFailed
from optimizer.profiling.streams import work_and_wall
from optimizer.progress import Progress
from optimizer.results import Conditions, EngineStatus

__all__ = ["MIN_ROUNDS", "Block", "Cell", "Limits", "Measured", "Measurement", "measure", "settled"]

MIN_ROUNDS = 12
"""Fewer rounds than this give intervals that cover too rarely; the budget is exceeded instead."""
_ROUNDS = 40
_SHORTEST_BLOCK_S, _LONGEST_BLOCK_S = 0.01, 0.25
_CALLS_A_BLOCK = 3
_LEAD_IN = 0.05
_WARM_UP = 0.5
_WINDOWS = 3
_CALLS_A_WINDOW = 3
_OVERRUN = 2.0
_LONGEST_REST_S, _SHORT_REST_S = 0.25, 0.02
_LEAK_SHARE, _LEAK_BYTES = 0.10, 64 << 20


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One engine at one batch size, as the harness starts it.

    Attributes:
        name: What it is called in messages; unique within a measurement.
        engine: An engine file or a checkpoint.
        batch: Images a call.
        image_size: ``None`` for the engine's own.
        threads: Threads to compute with, of all streams together.
        device: Which GPU, ``cuda:1``; ``None`` for the first, and for engines of the CPU.
        streams: Calls at the same time.
        variant: Which of a backend's ways to compute; see `optimizer.engines.Opening`.
        cache: Where a library that compiles when an engine is opened keeps what it made.
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
    """How long things may take.

    Attributes:
        duration_s: Time for the rounds of one cell, lead-ins and rests included.
        call_timeout_s: A call that takes longer hangs.
        load_timeout_s: The same for loading.
        least_rounds: Rounds that are measured even if they take longer than ``duration_s``.
    """

    duration_s: float
    call_timeout_s: float = 60.0
    load_timeout_s: float = 600.0
    least_rounds: int = MIN_ROUNDS

    @property
    def block_s(self) -> float:
        """Time of one block, lead-in not included."""
        return min(_LONGEST_BLOCK_S, max(_SHORTEST_BLOCK_S, self.duration_s / _ROUNDS))


@dataclass(frozen=True)
class Block:
    """What one cell did in one round."""

    round: int
    calls: NDArray[np.int64]
    """Calls x (start, upload, compute, download), nanoseconds; the lead-in comes first."""
    lead_in: int
    stream: NDArray[np.int32]
    """Which of the streams made each call."""
    start: int = 0
    """Which start of the engine this was."""

    @property
    def spans_ms(self) -> NDArray[np.float64]:
        """Calls after the lead-in x (upload, compute, download), milliseconds."""
        return self.calls[self.lead_in :, 1:] / 1e6

    @property
    def work_and_wall(self) -> tuple[float, float]:
        """Calls after the lead-in, and seconds by the clock that they took."""
        timed = self.calls[self.lead_in :]
        ends = timed.sum(axis=1)
        return work_and_wall(timed[:, 0], ends, self.stream[self.lead_in :])


@dataclass
class Measured:
    """What was found out about a cell."""

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
    """Number of its first block among the rounds of several measurements."""
    peak_rss_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    joules: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measurement:
    """A whole measurement.

    Attributes:
        cells: In the order they were asked for, failed ones included.
        conditions: The machine between rounds.
        rounds: Rounds that were measured.
    """

    cells: list[Measured]
    conditions: Conditions
    rounds: int


def measure(cells: Sequence[Cell], limits: Limits, *, seed: int, progress: Progress) -> Measurement:
    """Measure all cells in randomly interleaved rounds.

    An engine that fails at any point is marked and left out from then on.

    Args:
        cells: What to measure.
        limits: Budget and timeouts.
        seed: Decides the input images and the order within the rounds.
        progress: Told of the steps, between them.

    Raises:
        UsageError: An engine cannot be opened as it is, or not with this batch and image size;
            nothing was measured then.
    """
    runners: list[_Runner] = []
    gpus, energy = Gpus(), EnergyMeter()
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
        monitor = Monitor([r.pid for r in alive])
        rounds, notes = _rounds(alive, limits, monitor, seed, progress)
        for runner in runners:
            runner.end(gpus)
        notes += [f"{r.found.cell.name}: {note}" for r in runners for note in r.found.notes]
        return Measurement([r.found for r in runners], monitor.summary(notes), rounds)
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
    planned = max(limits.least_rounds, affordable)
    order = np.random.default_rng(seed)
    progress.start("measure", total=planned)
    started = time.monotonic()
    notes = []
    if affordable < planned:
        notes.append(
            f"calls are so slow that {planned} rounds, the fewest that give intervals, take longer "
            f"than the asked {limits.duration_s:.3g} s"
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
        if done >= limits.least_rounds and time.monotonic() - started > _OVERRUN * budget:
            notes.append(f"ended after {done} of {planned} rounds: they took too long")
            break
    progress.finish(f"{done} rounds")
    return done, notes


def settled(windows: Sequence[NDArray[np.float64]]) -> bool:
    """Whether the last windows of a warm-up agree, which ends it.

    They agree if their medians lie within 2 % of each other, or if each median lies between the
    quartiles of every other window: on a noisy machine medians differ by more, and no warm-up
    would fix that.

    Args:
        windows: Latencies of each window, in order.
    """
    if len(windows) <= _WINDOWS:  # the first window holds what loading left undone
        return False
    last = windows[-_WINDOWS:]
    medians = [float(np.median(w)) for w in last]
    if max(medians) <= 1.02 * min(medians):
        return True
    quartiles = [np.quantile(w, [0.25, 0.75]) for w in last]
    return all(low <= m <= high for low, high in quartiles for m in medians)


class _Runner:
    """One cell and its worker; a failure is written down and ends only this one."""

    def __init__(self, cell: Cell, limits: Limits, energy: EnergyMeter) -> None:
        self.found = Measured(cell)
        self._limits = limits
        self._worker: Worker | None = None
        self._call_s = 0.0
        self._rest_s, self._longest_rest_s = 0.0, _LONGEST_REST_S
        self._busy: list[float] = []
        self._memory: list[int] = []
        self._energy = energy

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self.found.status == "ok"

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        assert self._worker is not None
        return self._worker.pid

    @property
    def block_s(self) -> float:
        """Time of a block of this cell, lead-in not included."""
        return max(self._limits.block_s, _CALLS_A_BLOCK * self._call_s)

    @property
    def block_cost_s(self) -> float:
        """Time of a block with its lead-in, and of coming to rest after it."""
        return self.block_s + max(_LEAD_IN * self.block_s, self._call_s) + self._rest_s

    def begin(self, seed: int) -> None:
        """Start the worker, load the engine, compute once, warm up."""
        cell, found, limits = self.found.cell, self.found, self._limits
        try:
            self._worker = worker = Worker(cell.threads)
            found.start_s = worker.start_s
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
            found.load_s = loaded["load_s"]
            if len(loaded["runtimes"]) > 1:
                found.notes.append(f"its process loaded {' and '.join(loaded['runtimes'])}")
            prepared, _ = worker.ask(
                "prepare",
                timeout_s=limits.load_timeout_s,
                batch=cell.batch,
                image_size=cell.image_size,
                seed=seed,
            )
            found.first_inference_ms = prepared["first_inference_ms"]
            found.image_size = prepared["image_size"]
            found.notes += prepared["notes"]
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
                self.found.notes.append("its warm-up did not settle")
                break
            block = self._ask(self._limits.block_s, min_calls=_CALLS_A_WINDOW, longest_rest_s=0.0)
            self.found.warmup_calls += len(block.calls)
            windows.append(block.spans_ms.sum(axis=1))
        self.found.settled = settled(windows)
        self._call_s = float(np.median(windows[-1])) / 1e3
        # Once more, to learn how long it takes to come to rest.
        block = self._ask(0.0, min_calls=1, longest_rest_s=self._longest_rest_s)
        self.found.warmup_calls += len(block.calls)

    def block(self, number: int) -> None:
        """Compute for one block of round ``number``."""
        self._energy.begin()
        try:
            block = self._ask(
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
            self.found.joules = (self.found.joules or 0.0) + joules
        self.found.blocks.append(block)

    def _ask(self, seconds: float, *, number: int = -1, **limits: Any) -> Block:
        assert self._worker is not None
        # The answer comes after all the calls that were asked for, each of which has its own time.
        calls = limits["min_calls"] + limits.get("min_lead_in", 0)
        wait_policy = seconds * (1 + _LEAD_IN) + calls * self._limits.call_timeout_s
        header, arrays = self._worker.ask("time", timeout_s=wait_policy, seconds=seconds, **limits)
        self.found.peak_rss_bytes = header["peak_rss_bytes"]
        if header["rss_bytes"] is not None and number >= 0:
            self._memory.append(header["rss_bytes"])
        self._rest_s = header["rest_s"]
        if number >= 0:
            self._busy.append(header["busy"])
        if header["busy"] > 0:  # threads that never rest are not worth waiting for again and again
            self._longest_rest_s = _SHORT_REST_S
        return Block(number, arrays["calls"], header["lead_in"], arrays["stream"])

    def end(self, gpus: Gpus) -> None:
        """Write down what only shows at the end."""
        found = self.found
        if self.alive:
            found.gpu_memory_bytes = gpus.memory_bytes(self.pid)
            busy = float(np.median(self._busy)) if self._busy else 0.0
            if busy > 0:
                found.notes.append(
                    f"its threads do not stop working between its blocks ({busy:.0%} of a core), "
                    "which slows the other engines down"
                )
            if (grown := leaked(self._memory)) is not None:
                found.notes.append(f"its memory grew by {grown / 2**20:.0f} MiB during the rounds")

    def _fail(self, failure: WorkerFailed) -> None:
        # One that computed before is not missing what it needs: it has lost it.
        self.found.status = "failed" if self.found.blocks else failure.status
        self.found.error = failure.message
        self.close()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def leaked(memory: Sequence[int]) -> int | None:
    """By how many bytes resident memory grew, if it looks like a leak.

    It does if the last third of the rounds lies wholly above the first third, by more than 10 %
    and 64 MiB: a cache that fills up once does not go on growing.

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
