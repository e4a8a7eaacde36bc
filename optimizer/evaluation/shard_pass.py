"""Computes what hops predict for shards of images, or finds it stored."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import digest
from optimizer.data.dataset import Batch, by_group
from optimizer.errors import DataError
from optimizer.evaluation.chain import REFERENCE
from optimizer.evaluation.executors import Executor, chunk_of, in_chunks
from optimizer.evaluation.hop_outcomes import Outcome, Parity, Pass
from optimizer.evaluation.image_shards import Shard
from optimizer.evaluation.stored_predictions import PredictionStore, StoredShard
from optimizer.tasks.task import PredictionRecord

__all__ = ["ShardPass", "ShardRequest", "ShardResult", "one_line"]

Array = NDArray[Any]


@dataclass(frozen=True)
class ShardRequest:
    """Which hops to compute on a shard, parents before their children."""

    shard: Shard
    hops: Sequence[str]


@dataclass
class ShardResult:
    """What was computed on a shard.

    Attributes:
        images: Number of images that could be read.
        found: Whether all predictions were stored.
        tallies: Sums by hop, without the hops that failed.
        record: The predictions.
    """

    images: int
    found: bool
    tallies: dict[str, Any]
    record: PredictionRecord


@dataclass
class _Computed:
    """Predictions of the batches of one shard."""

    kept: list[NDArray[np.int64]] = field(default_factory=list)
    predictions: dict[str, list[Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class ShardPass:
    """Computes shards with the executors of one pass."""

    def __init__(self, plan: Pass, parity: Parity) -> None:
        """Nothing is read yet.

        Args:
            plan: What to compute.
            parity: The opened hops; a hop that fails is marked there.
        """
        self._plan, self._parity = plan, parity
        self._as_uint8 = plan.reference.takes_uint8 or any(
            executor.takes_uint8 for executor in parity.sessions.values()
        )
        self._as_probabilities = plan.task.outputs == "logits" and (
            plan.reference.probabilities
            or any(executor.probabilities for executor in parity.sessions.values())
        )
        """Logits and probabilities have no common scale: if one hop gives probabilities, all do."""
        self.stores = {} if plan.stores is None else self._open_stores()

    def results(self, requests: Sequence[ShardRequest]) -> Generator[ShardResult, None, None]:
        """Compute shards in order; images are decoded ahead, across shards."""
        digests = [self._digest(request.shard) for request in requests]
        missing = [
            [hop for hop in request.hops if not self._stored(hop, images)]
            for request, images in zip(requests, digests, strict=True)
        ]
        shards = [r.shard for r, hops in zip(requests, missing, strict=True) if hops]
        with contextlib.closing(self._batches(shards)) as batches:
            by_shard = by_group(batches, [shard.indices for shard in shards])
            for request, images, hops in zip(requests, digests, missing, strict=True):
                computed = self._compute(next(by_shard), hops) if hops else None
                yield self._finish(request, images, computed or _Computed())

    def _finish(self, request: ShardRequest, images: str, computed: _Computed) -> ShardResult:
        """Add stored predictions to the computed ones, store those, and tally all."""
        shard, found = request.shard, not computed.kept
        stored = self._load(request, images, computed)
        damaged = [hop for hop in request.hops if hop not in stored and self._ok(hop)]
        damaged = [hop for hop in damaged if hop not in computed.predictions]
        if damaged and (found or stored):  # otherwise no image of the shard could be read
            with contextlib.closing(self._batches([shard])) as batches:
                again = self._compute(batches, damaged)
            found = False
            computed.kept = again.kept
            computed.predictions |= again.predictions
            computed.shapes |= again.shapes
        if computed.kept:
            stored |= self._save(shard, images, computed)
        if found:
            self._plan.progress.advance(len(shard.indices))
        return self._tallied(request, stored, found=found)

    def _load(
        self, request: ShardRequest, images: str, computed: _Computed
    ) -> dict[str, StoredShard]:
        stored = {}
        for hop in request.hops:
            if hop in self.stores and hop not in computed.predictions and self._ok(hop):
                found = self.stores[hop].load(images)
                if found is not None and self._counts(found, request.shard):
                    stored[hop] = found
        return stored

    def _counts(self, found: StoredShard, shard: Shard) -> bool:
        """Whether a stored shard counts: images that it lacks are an error unless they are skipped."""
        return self._plan.dataset.skip_bad_images or len(found.kept) == len(shard.indices)

    def _save(self, shard: Shard, images: str, computed: _Computed) -> dict[str, StoredShard]:
        """Store what was computed.

        Only the positions within the shard are stored, because the same images may be elsewhere in
        another dataset.
        """
        position = {int(index): number for number, index in enumerate(shard.indices)}
        kept = np.array([position[int(i)] for i in np.concatenate(computed.kept)], np.int64)
        stored = {}
        for hop, predictions in computed.predictions.items():
            if not self._ok(hop):
                continue
            arrays = self._plan.task.pack(predictions)
            stored[hop] = StoredShard(kept, computed.shapes[hop], arrays)
            if hop in self.stores:
                self.stores[hop].save(images, stored[hop])
        return stored

    def _tallied(
        self, request: ShardRequest, stored: dict[str, StoredShard], *, found: bool
    ) -> ShardResult:
        plan, task, dataset = self._plan, self._plan.task, self._plan.dataset
        record, tallies = task.recorder(), {}
        if REFERENCE not in stored:
            return ShardResult(0, found, {}, record)
        kept = request.shard.indices[stored[REFERENCE].kept]
        record.start_batch(kept)
        missing = set(request.shard.indices.tolist()) - set(kept.tolist())
        plan.dataset.skipped.extend(
            name
            for name in map(dataset.image_id, sorted(missing))
            if name not in plan.dataset.skipped
        )
        predictions: dict[str, Any] = {}
        for hop in request.hops:
            outcome = self._parity.outcomes[hop]
            if hop not in stored or not self._fits(outcome, stored[hop], stored[REFERENCE]):
                continue
            predictions[hop] = task.unpack(stored[hop].arrays)
            parent = predictions.get(outcome.step.parent) if outcome.step else None
            tallies[hop] = task.tally()
            others = predictions[REFERENCE], parent
            task.add(tallies[hop], predictions[hop], dataset, kept, others)
            record.add(hop, predictions[hop])
        return ShardResult(len(kept), found, tallies, record)

    def _fits(self, outcome: Outcome, stored: StoredShard, reference: StoredShard) -> bool:
        if stored.shape != reference.shape:
            found, expected = (("N", *shard.shape) for shard in (stored, reference))
            outcome.fail(
                f"returns outputs of shape {_shape(found)}, the reference {_shape(expected)}"
            )
        elif not np.array_equal(stored.kept, reference.kept):
            outcome.fail("other images could be read for it than for the reference")
        return outcome.status == "ok"

    # --- computing -----------------------------------------------------------------------------

    def _compute(self, batches: Iterable[Batch], hops: Collection[str]) -> _Computed:
        computed, task = _Computed(), self._plan.task
        for images, _, indices in batches:
            preprocessing = self._plan.reference.preprocessing
            tensors = preprocessing.normalize(images) if self._as_uint8 else images
            views = _Views(tensors, images)
            for hop in hops:
                if not self._ok(hop):
                    continue
                with self._plan.clock.computing(hop):
                    outputs = self._outputs(hop, views)
                if outputs is not None:
                    with self._plan.clock.reading(hop, len(indices)):
                        predictions = task.read(outputs, self._plan.dataset, indices)
                    computed.predictions.setdefault(hop, []).append(predictions)
                    computed.shapes[hop] = outputs.shape[1:]
            computed.kept.append(indices)
            self._plan.progress.advance(len(indices))
        return computed

    def _outputs(self, hop: str, views: _Views) -> Array | None:
        outcome = self._parity.outcomes[hop]
        if hop != REFERENCE:
            executor = self._parity.sessions[hop]
            found = _outputs_of(outcome, executor, views, self._plan.task.outputs)
            return self._comparable(found, are_probabilities=executor.probabilities)
        reference = self._plan.reference
        chunk = chunk_of(reference.preprocessing.image_size)
        outputs = in_chunks(reference.run, views.of(reference.takes_uint8), chunk)
        if not np.isfinite(outputs).all():
            raise DataError(
                f"the reference {reference.name} returns NaN or infinite {self._plan.task.outputs}",
                hint="check the checkpoint; no engine can be compared with it",
            )
        return self._comparable(outputs, are_probabilities=reference.probabilities)

    def _comparable(self, outputs: Array | None, *, are_probabilities: bool) -> Array | None:
        if outputs is None or are_probabilities or not self._as_probabilities:
            return outputs
        exponentials = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)

    def _batches(self, shards: Sequence[Shard]) -> Generator[Batch, None, None]:
        batches = self._plan.dataset.grouped_batches(
            [shard.indices for shard in shards],
            self._plan.options.batch,
            self._plan.reference.preprocessing,
            as_uint8=self._as_uint8,
        )
        with contextlib.closing(batches):
            yield from self._plan.clock.waiting_for(batches)

    # --- stores --------------------------------------------------------------------------------

    def _open_stores(self) -> dict[str, PredictionStore]:
        plan = self._plan
        assert plan.stores is not None
        shared = {
            "task": plan.task.name,
            "preprocessing": plan.reference.preprocessing.sha256,
            "batch": plan.options.batch,
            "chunk": chunk_of(plan.reference.preprocessing.image_size),
            "probabilities": self._as_probabilities,
        }
        stores = {}
        for hop, outcome in self._parity.outcomes.items():
            if outcome.status != "ok":
                continue
            network = plan.reference.sha256 if outcome.step is None else digest(outcome.step.path)
            own = {"network": network, "executor": outcome.executor}
            stores[hop] = plan.stores.store({**shared, **own})
        return stores

    def _digest(self, shard: Shard) -> str:
        return self._plan.dataset.content(shard.indices) if self.stores else ""

    def _stored(self, hop: str, images: str) -> bool:
        return hop in self.stores and self.stores[hop].has(images)

    def _ok(self, hop: str) -> bool:
        return self._parity.outcomes[hop].status == "ok"


@dataclass(frozen=True)
class _Views:
    """One batch as float32 tensors, and as loaded (uint8 if any hop takes uint8)."""

    tensors: Array
    images: Array

    def of(self, takes_uint8: bool) -> Array:
        return self.images if takes_uint8 else self.tensors


def _outputs_of(outcome: Outcome, executor: Executor, views: _Views, noun: str) -> Array | None:
    """Outputs of one hop; ``None`` if they are unusable, with the outcome marked as failed."""
    try:
        outputs = executor.run(views.of(executor.takes_uint8))
    except Exception as error:  # noqa: BLE001 - a library's failure is this hop's result
        outcome.crash(one_line(error))
        return None
    bad = ~np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim)))
    if bad.any():
        count = int(np.count_nonzero(bad))
        message = f"returns NaN or infinite {noun} for {count} of {len(outputs)} images"
        images = views.of(executor.takes_uint8)
        outcome.fail(f"{message}{_explained(executor, images[bad.argmax()][None])}")
        return None
    return outputs


def _explained(executor: Executor, image: Array) -> str:
    """Where an image's outputs become unusable, as a continuation of the message."""
    reason = None if executor.explain is None else executor.explain(image)
    return "" if reason is None else f": {reason}"


def one_line(error: Exception) -> str:
    """The type and the first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _shape(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))})"
