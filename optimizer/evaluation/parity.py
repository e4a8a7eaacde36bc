"""Compare all hops in one pass: every image is decoded once and goes through every hop.

The pass goes shard by shard. What a hop predicted for a shard is stored, and found there by the next
validation; a shard whose predictions are all stored is not even decoded. Sums are kept per shard and
merged in the order of the shards, so the result does not depend on the number of processes. Only the
predictions of one shard, and the five largest logits of each image, are in memory.

The hops between the reference and the engines are there to name the guilty one. By default they see a
sample of the images, and the others only if an engine does not pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from optimizer.errors import DataError, EnvironmentFault, UsageError
from optimizer.evaluation.chain import REFERENCE, Step
from optimizer.evaluation.executors import Executor, open_step
from optimizer.evaluation.hop_outcomes import Outcome, Parity, Pass
from optimizer.evaluation.image_shards import plan_shards
from optimizer.evaluation.reference import Reference
from optimizer.evaluation.shard_pass import ShardPass, ShardRequest, ShardResult, one_line
from optimizer.processes.ranks import gathered, rank_and_world
from optimizer.results import VerdictName

__all__ = ["measure"]

Results = dict[int, ShardResult]
"""By the number of the shard."""


@contextlib.contextmanager
def measure(plan: Pass) -> Iterator[Parity]:
    """Compute every hop on the images; the engines stay open inside the ``with`` block.

    A hop whose executor raises, or whose outputs are not finite or differ in shape from the
    reference's, is marked as failed with the reason; the others continue.

    Raises:
        UsageError: A file is of the wrong kind, or images cannot be read.
        DataError: No image can be read, or the reference returns NaN.
        AccuracyGateFailed: The reference is far below its expected accuracy.
    """
    outcomes = {REFERENCE: Outcome(None, plan.reference.executor)}
    parity = Parity(outcomes, {}, plan.clock, plan.task, plan.task.recorder())
    try:
        for step in plan.steps:
            parity.outcomes[step.name] = _open(step, plan.reference, parity.sessions)
        _Measurement(plan, parity).run()
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
        outcome.crash(one_line(error))
    return outcome


class _Measurement:
    """One pass, in this process and in the others that torchrun started."""

    def __init__(self, plan: Pass, parity: Parity) -> None:
        self._plan, self._parity = plan, parity
        self._shards = plan_shards(plan.dataset, plan.options, plan.gates.max_drop_pp)
        self._pass = ShardPass(plan, parity)
        self._hops = [name for name, o in parity.outcomes.items() if o.status == "ok"]
        self._ends = _deciding_hops(plan, parity)

    def run(self) -> None:
        """Compute, merge, and compute the hops between on all images if an engine does not pass."""
        plan, parity = self._plan, self._parity
        rank, world = rank_and_world()
        mine = range(rank, len(self._shards), world)
        plan.progress.start("validate", total=sum(len(self._shards[n].indices) for n in mine))
        run = self._run_until_decided if plan.options.until_decided else self._run_all
        results = self._merged(run(mine))
        partial = [n for n in results if not self._shards[n].sampled]
        if partial and len(self._ends) + 1 < len(self._hops) and self._verdict(results) != "pass":
            requests = [ShardRequest(self._shards[n], self._hops) for n in partial]
            own = dict(
                zip(partial[rank::world], self._pass.results(requests[rank::world]), strict=True)
            )
            results |= self._merged(own)
        self._conclude(dict(sorted(results.items())))
        notes = [f"{parity.images} images, {len(parity.outcomes)} hops"]
        if parity.found:
            notes.append(f"predictions for {parity.found} images were stored before")
        if parity.store_error is not None:
            notes.append(f"predictions cannot be stored: {parity.store_error}")
        plan.progress.finish("; ".join(notes))

    def _requests(self, numbers: Sequence[int]) -> list[ShardRequest]:
        deciding = [REFERENCE, *self._ends]
        return [
            ShardRequest(shard, self._hops if shard.sampled else deciding)
            for shard in map(self._shards.__getitem__, numbers)
        ]

    def _run_all(self, mine: Sequence[int]) -> Results:
        results: Results = {}
        sums = self._empty_sums()
        computed = self._pass.results(self._requests(mine))
        with contextlib.closing(computed):
            for number, result in zip(mine, computed, strict=True):
                results[number] = result
                self._check_reference(sums, result)
        return results

    def _run_until_decided(self, mine: Sequence[int]) -> Results:
        """Stop after the first shard, in their order, with which every engine is decided.

        All processes look at the same sums after each round, so they stop together, and shards
        beyond the deciding one do not count: the result is that of one process.
        """
        results, looked_at = {}, 0
        sums = self._empty_sums()
        rounds = range(0, len(self._shards), rank_and_world()[1])
        computed = self._pass.results(self._requests(mine))
        with contextlib.closing(computed):
            for start in rounds:
                own = next(computed, None)
                if own is not None:
                    results[start + rank_and_world()[0]] = own
                rounds_results = gathered((own, self._failed()))
                for _, failures in rounds_results:
                    self._mark(failures)
                for result in [result for result, _ in rounds_results if result is not None]:
                    self._check_reference(sums, result)
                    looked_at += 1
                    if self._decided(sums):
                        return {n: r for n, r in results.items() if n < looked_at}
        return results

    def _empty_sums(self) -> dict[str, Any]:
        return {name: self._plan.task.tally() for name in (REFERENCE, *self._ends)}

    def _check_reference(self, sums: Mapping[str, Any], result: ShardResult) -> None:
        """Add a result to the sums, and stop if the reference is far below what is expected."""
        plan, task = self._plan, self._plan.task
        _add(sums, [result])
        task.check_early(sums[REFERENCE], plan.reference.expected_top1, plan.dataset.name)
        drops = [f"{end}: {task.running(sums[end])}" for end in self._ends if sums[end].n]
        plan.progress.advance(0, note="; ".join(drops))

    # --- judging -------------------------------------------------------------------------------

    def _verdicts(self, sums: Mapping[str, Any]) -> list[VerdictName]:
        plan, task = self._plan, self._plan.task
        informative = task.labels_informative(sums[REFERENCE], plan.reference.num_classes)
        return [
            task.verdict(sums[end], plan.gates, labels_informative=informative)
            for end in self._ends
            if self._parity.outcomes[end].status == "ok"
        ]

    def _decided(self, sums: Mapping[str, Any]) -> bool:
        return "inconclusive" not in self._verdicts(sums)

    def _verdict(self, results: Results) -> VerdictName:
        sums = self._empty_sums()
        _add(sums, results.values())
        counted = {name: total for name, total in sums.items() if total.n}
        if REFERENCE in counted:
            parents = dict.fromkeys(self._ends, REFERENCE)
            self._plan.task.finish(counted, parents, self._plan.dataset)
        failed = any(outcome.status == "failed" for outcome in self._parity.outcomes.values())
        verdicts = self._verdicts(sums)
        return "pass" if not failed and set(verdicts) <= {"pass"} else "fail"

    # --- merging -------------------------------------------------------------------------------

    def _merged(self, own: Results) -> Results:
        """The results of all processes; a hop that failed in one of them failed."""
        merged: Results = {}
        for results, failures in gathered((own, self._failed())):
            merged |= results
            self._mark(failures)
        return dict(sorted(merged.items()))

    def _failed(self) -> dict[str, str | None]:
        return {n: o.error for n, o in self._parity.outcomes.items() if o.status == "failed"}

    def _mark(self, failures: Mapping[str, str | None]) -> None:
        for name, error in failures.items():
            if self._parity.outcomes[name].status == "ok":
                self._parity.outcomes[name].fail(f"{error} (in another process)")

    def _conclude(self, results: Results) -> None:
        """Sum up the shards in their order."""
        parity, task = self._parity, self._plan.task
        readable = [result for result in results.values() if result.images]
        if not readable:
            raise DataError(
                f"no image of {self._plan.dataset.name} can be read", hint="check the files"
            )
        measured = {n: o for n, o in parity.outcomes.items() if o.status == "ok"}
        sums = {name: task.tally() for name in measured}
        _add(sums, readable)
        for name, outcome in measured.items():
            if any(name in result.tallies for result in readable):
                outcome.tally = sums[name]
            else:
                outcome.status, outcome.error = "skipped", "every engine passes without it"
                del sums[name]
        parity.recorder = readable[0].record
        for result in readable[1:]:
            parity.recorder.merge(result.record)
        for name in parity.outcomes:
            if name not in sums:
                parity.recorder.forget(name)
        parity.images = sum(result.images for result in readable)
        parity.found = sum(result.images for result in readable if result.found)
        errors = [store.error for store in self._pass.stores.values() if store.error]
        parity.store_error = errors[0] if errors else None
        parents = {
            n: o.step.parent for n, o in measured.items() if o.step is not None and n in sums
        }
        task.finish(sums, parents, self._plan.dataset)


def _deciding_hops(plan: Pass, parity: Parity) -> list[str]:
    """The last hop of each chain that could be opened."""
    last = (
        next((s.name for s in reversed(steps) if parity.outcomes[s.name].status == "ok"), None)
        for steps in plan.chains.values()
    )
    return list(dict.fromkeys(name for name in last if name is not None))


def _add(sums: Mapping[str, Any], results: Collection[ShardResult]) -> None:
    for result in results:
        for name, total in sums.items():
            if name in result.tallies:
                total.merge(result.tallies[name])
