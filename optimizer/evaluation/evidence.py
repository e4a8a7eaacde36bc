"""All measurements of a validation, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from optimizer.evaluation.chain import Step
from optimizer.evaluation.hop_outcomes import Outcome
from optimizer.results import Audit, BatchConsistency, Gates, Hop, VerdictName
from optimizer.tasks import Task
from optimizer.tasks.paired_statistics import worst_verdict

__all__ = ["Evidence"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All measurements of a validation.

    Attributes:
        hops: All hops, the reference first.
        outcomes: The tallies behind the hops, by hop name.
        chains: Steps by chain label.
        gates: The limits.
        consistency: Batch consistency of the engines.
        audits: Precision audits by engine.
        task: Judges and describes the hops.
        labels_informative: Whether the reference is better than chance on these labels.
    """

    hops: Sequence[Hop]
    outcomes: Mapping[str, Outcome]
    chains: Mapping[str, Sequence[Step]]
    gates: Gates
    consistency: Sequence[BatchConsistency]
    audits: Mapping[str, Audit]
    task: Task
    labels_informative: bool = True

    @cached_property
    def ends(self) -> list[Hop | None]:
        """The deciding hop of each chain: the last one that could run; ``None`` if none could."""
        by_name = {hop.name: hop for hop in self.hops}
        return [
            next((by_name[s.name] for s in reversed(steps) if by_name[s.name].verdict), None)
            for steps in self.chains.values()
        ]

    @property
    def first_failing(self) -> Hop | None:
        """The first hop that failed or exceeds a limit, in the order of the chains."""
        return next((hop for hop in self.hops if hop.verdict == "fail"), None)

    @property
    def verdict(self) -> VerdictName:
        """``fail`` if anything fails, else ``inconclusive`` if a chain is.

        An inconclusive precision audit does not count.
        """
        checks: list[VerdictName] = [check.verdict for check in self.consistency]
        checks += [a.verdict for a in self.audits.values() if a.verdict == "fail"]
        checks += ["inconclusive" if hop is None else hop.verdict or "pass" for hop in self.ends]
        if self.first_failing is not None:
            checks.append("fail")
        return worst_verdict(*checks)

    @cached_property
    def images_needed(self) -> int | None:
        """Images that would decide every chain; ``None`` if all are decided or one cannot be."""
        undecided = [hop for hop in self.ends if hop and hop.verdict == "inconclusive"]
        needed = [
            self.task.images_needed(self.outcomes[hop.name].tally, self.gates) for hop in undecided
        ]
        sizes = [n for n in needed if n is not None]
        return max(sizes) if sizes and len(sizes) == len(needed) else None
