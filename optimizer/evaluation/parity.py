"""Compare all hops in one pass: every image is decoded once and goes through every hop.

Only the five largest logits of each image are kept; all other memory is independent of the number
of images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Dataset
from optimizer.errors import DataError, EnvironmentFault, UsageError
from optimizer.evaluation.chain import REFERENCE, Step
from optimizer.evaluation.clock import Clock
from optimizer.evaluation.executors import Executor, chunk_of, in_chunks, open_step
from optimizer.evaluation.reference import Reference
from optimizer.evaluation.shards import gathered, rank_and_world
from optimizer.progress import Progress
from optimizer.results import EngineStatus
from optimizer.tasks import Task
from optimizer.tasks.task import PredictionRecord

__all__ = ["Outcome", "Parity", "measure"]

Array = NDArray[Any]


@dataclass
class Outcome:
    """Result of one hop.

    Attributes:
        step: The hop; ``None`` for the reference.
        executor: Description of what computed it.
        status: ``ok``, ``failed``, or ``built-not-run`` where this machine cannot run the engine.
        error: Why it has no result.
        tally: The task's sums; valid only if `status` is ``ok``.
    """

    step: Step | None
    executor: str
    status: EngineStatus = "ok"
    error: str | None = None
    tally: Any = None

    def fail(self, error: str) -> None:
        """Mark the hop as failed and discard its sums."""
        self.status, self.error, self.tally = "failed", error, None


@dataclass
class Parity:
    """All hops after the pass, the reference first.

    Attributes:
        outcomes: Results by hop name.
        sessions: Open executors by hop name; `measure` closes them at the end of its context.
        recorder: The predictions.
        clock: Timing of the pass.
        task: Reads and compares the outputs.
    """

    outcomes: dict[str, Outcome]
    sessions: dict[str, Executor]
    recorder: PredictionRecord
    clock: Clock
    task: Task


@contextlib.contextmanager
def measure(
    steps: Iterable[Step],
    reference: Reference,
    dataset: Dataset,
    *,
    batch: int,
    clock: Clock,
    progress: Progress,
) -> Iterator[Parity]:
    """Compute every hop on every image; the engines stay open inside the ``with`` block.

    A hop whose executor raises, or whose outputs are not finite or differ in shape from the
    reference's, is marked as failed with the reason; the others continue.

    Args:
        steps: The hops, parents before their children.
        reference: What the hops are compared with.
        dataset: The images; labels are output indices of the reference.
        batch: Images per call.
        clock: Receives computing and waiting times.
        progress: Receives progress updates per batch.

    Raises:
        UsageError: A file is of the wrong kind, or images cannot be read.
        AccuracyGateFailed: The reference is far below its expected accuracy.
    """
    task = reference.task
    opened = Outcome(None, reference.executor)
    parity = Parity({REFERENCE: opened}, {}, task.recorder(), clock, task)
    try:
        for step in steps:
            parity.outcomes[step.name] = _open(step, reference, parity.sessions)
        for outcome in parity.outcomes.values():
            if outcome.status == "ok":
                outcome.tally = task.tally()
        _run_pass(parity, reference, dataset, batch, progress)
        _merge_processes(parity)
        _finish(parity, dataset)
        yield parity
    finally:
        for executor in parity.sessions.values():
            executor.session.close()


def _open(step: Step, reference: Reference, sessions: dict[str, Executor]) -> Outcome:
    outcome = Outcome(step, "not run")
    if step.fault is not None:
        outcome.fail(step.fault)
        return outcome
    try:
        sessions[step.name] = open_step(step, reference.preprocessing.image_size)
        outcome.executor = sessions[step.name].name
    except EnvironmentFault as error:
        outcome.status, outcome.error = "built-not-run", str(error)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a library's failure is this hop's result
        outcome.fail(_one_line(error))
    return outcome


def _run_pass(
    parity: Parity, reference: Reference, dataset: Dataset, batch: int, progress: Progress
) -> None:
    as_uint8 = reference.takes_uint8 or any(e.takes_uint8 for e in parity.sessions.values())
    rank, world = rank_and_world()
    order = np.arange(rank, len(dataset), world)
    progress.start("validate", total=len(order))
    batches = dataset.batches(batch, reference.preprocessing, as_uint8=as_uint8, order=order)
    with contextlib.closing(batches):
        for images, _, indices in parity.clock.waiting_for(batches):
            tensors = reference.preprocessing.normalize(images) if as_uint8 else images
            _run_batch(parity, reference, _Views(tensors, images), dataset, indices)
            progress.advance(len(indices))
            tally = parity.outcomes[REFERENCE].tally
            parity.task.check_early(tally, reference.expected_top1, dataset.name)
    progress.finish(f"{len(order)} images, {len(parity.outcomes)} hops")


@dataclass(frozen=True)
class _Views:
    """One batch as float32 tensors, and as loaded (uint8 if any hop takes uint8)."""

    tensors: Array
    images: Array

    def of(self, takes_uint8: bool) -> Array:
        return self.images if takes_uint8 else self.tensors


def _run_batch(
    parity: Parity,
    reference: Reference,
    views: _Views,
    dataset: Dataset,
    indices: NDArray[np.int64],
) -> None:
    task = parity.task
    chunk = chunk_of(reference.preprocessing.image_size)
    with parity.clock.computing(REFERENCE):
        expected = in_chunks(reference.run, views.of(reference.takes_uint8), chunk)
    if not np.isfinite(expected).all():
        raise DataError(
            f"the reference {reference.name} returns NaN or infinite {task.outputs}",
            hint="check the checkpoint; no engine can be compared with it",
        )
    predictions = {REFERENCE: task.read(expected, dataset, indices)}
    parity.recorder.start_batch(indices)
    for name, outcome in parity.outcomes.items():
        if outcome.step is not None and outcome.status == "ok":
            with parity.clock.computing(name):
                outputs = _compute(outcome, parity.sessions[name], views, expected, task.outputs)
            if outputs is None:
                parity.recorder.forget(name)
                continue
            predictions[name] = task.read(outputs, dataset, indices)
        if name in predictions:
            parent = predictions.get(outcome.step.parent) if outcome.step else None
            others = predictions[REFERENCE], parent
            task.add(outcome.tally, predictions[name], dataset, indices, others)
            parity.recorder.add(name, predictions[name])


def _compute(
    outcome: Outcome, executor: Executor, views: _Views, expected: Array, noun: str
) -> Array | None:
    """Outputs of one hop; ``None`` if they are unusable, with the outcome marked as failed."""
    try:
        outputs = executor.run(views.of(executor.takes_uint8))
    except Exception as error:  # noqa: BLE001 - a library's failure is this hop's result
        outcome.fail(_one_line(error))
        return None
    if outputs.shape != expected.shape:
        outcome.fail(f"returns outputs of shape {outputs.shape}, the reference {expected.shape}")
        return None
    bad = ~np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim)))
    if bad.any():
        count = int(np.count_nonzero(bad))
        outcome.fail(f"returns NaN or infinite {noun} for {count} of {len(outputs)} images")
        return None
    return outputs


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _merge_processes(parity: Parity) -> None:
    """Merge the sums of all processes, so that each ends with the same result."""
    (outcomes, recorder), *others = gathered((parity.outcomes, parity.recorder))
    for other_outcomes, other_recorder in others:
        for name, outcome in outcomes.items():
            other = other_outcomes[name]
            if outcome.status == "ok" and other.status == "ok":
                outcome.tally.merge(other.tally)
            elif outcome.status == "ok":
                outcome.fail(f"{other.error} (in another process)")
        recorder.merge(other_recorder)
    parity.outcomes, parity.recorder = outcomes, recorder


def _finish(parity: Parity, dataset: Dataset) -> None:
    measured = {name: o for name, o in parity.outcomes.items() if o.status == "ok"}
    parents = {name: o.step.parent for name, o in measured.items() if o.step is not None}
    parity.task.finish({name: o.tally for name, o in measured.items()}, parents, dataset)
