"""What a pass over the images computes, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.data import ImageDataset
from optimizer.evaluation.chain import Step
from optimizer.evaluation.clock import Clock
from optimizer.evaluation.executors import Executor
from optimizer.evaluation.reference import Reference
from optimizer.evaluation.stored_predictions import PredictionStores
from optimizer.options import HopOptions
from optimizer.progress import Progress
from optimizer.results import EngineStatus, Gates
from optimizer.tasks import Task
from optimizer.tasks.task import PredictionRecord

__all__ = ["Outcome", "Parity", "Pass"]


@dataclass
class Outcome:
    """Result of one hop.

    Attributes:
        step: The hop; ``None`` for the reference.
        executor: Description of what computed it.
        status: ``ok``, ``failed``, or ``built-not-run`` where this machine cannot run the engine.
        error: Why it has no result.
        crashed: Whether the library that executes it raised the error.
        tally: The task's sums; valid only if `status` is ``ok``.
    """

    step: Step | None
    executor: str
    status: EngineStatus = "ok"
    error: str | None = None
    crashed: bool = False
    tally: Any = None

    def fail(self, error: str) -> None:
        """Mark the hop as failed and discard its sums."""
        self.status, self.error, self.tally = "failed", error, None

    def crash(self, error: str) -> None:
        """Mark the hop as failed because a library did not execute it."""
        self.fail(error)
        self.crashed = True


@dataclass
class Parity:
    """All hops after the pass, the reference first.

    Attributes:
        outcomes: Results by hop name.
        sessions: Open executors by hop name; `measure` closes them at the end of its context.
        clock: Timing of the pass.
        task: Reads and compares the outputs.
        recorder: The predictions.
        images: Number of images that were looked at.
        found: Number of images whose predictions were all stored.
        store_error: Why predictions are not stored any more, or ``None``.
    """

    outcomes: dict[str, Outcome]
    sessions: dict[str, Executor]
    clock: Clock
    task: Task
    recorder: PredictionRecord
    images: int = 0
    found: int = 0
    store_error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a pass computes.

    Attributes:
        chains: The hops of each chain by its label, parents before their children; chains share
            hops.
        reference: What the hops are compared with.
        dataset: The images; labels are output indices of the reference.
        gates: The limits that are judged.
        options: Images per call, which hops see all images, and when to stop.
        stores: Stored predictions; ``None`` stores nothing.
        clock: Receives computing and waiting times.
        progress: Receives progress updates per batch.
    """

    chains: Mapping[str, Sequence[Step]]
    reference: Reference
    dataset: ImageDataset
    gates: Gates
    options: HopOptions
    stores: PredictionStores | None
    clock: Clock
    progress: Progress

    @property
    def task(self) -> Task:
        """The task that reads and judges the outputs."""
        task = self.reference.task
        return task.stopping_early() if self.options.until_decided else task

    @property
    def steps(self) -> list[Step]:
        """The hops of all chains, each once."""
        return list({step.name: step for steps in self.chains.values() for step in steps}.values())
