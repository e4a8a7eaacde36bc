"""All measurements of a validation, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from optimizer.evaluation.chain import Step
from optimizer.evaluation.paired_statistics import (
    Paired,
    gate,
    images_needed,
    wilson_interval,
    worst_verdict,
)
from optimizer.evaluation.parity import Outcome
from optimizer.results import Audit, BatchConsistency, Gates, Hop, VerdictName

__all__ = ["Evidence", "judge_hop"]


def judge_hop(
    paired: Paired, flips: int, gates: Gates, *, labels_informative: bool = True
) -> VerdictName:
    """Judge one hop by the paired interval of its drop and the Wilson interval of its flips.

    If the labels are uninformative (the reference itself is at chance), a small drop proves nothing:
    the hop is then inconclusive if more predictions changed than the drop limit allows.
    """
    verdict = gate(paired.interval_pp, gates.max_drop_pp)
    if not labels_informative and verdict == "pass":
        changed = wilson_interval(flips, paired.n)[0]
        verdict = "inconclusive" if changed > gates.max_drop_pp / 100 else "pass"
    if gates.max_flips is None:
        return verdict
    return worst_verdict(verdict, gate(wilson_interval(flips, paired.n), gates.max_flips))


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
        labels_informative: Whether the reference is better than chance on these labels.
    """

    hops: Sequence[Hop]
    outcomes: Mapping[str, Outcome]
    chains: Mapping[str, Sequence[Step]]
    gates: Gates
    consistency: Sequence[BatchConsistency]
    audits: Mapping[str, Audit]
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
        needed = [self._needed(hop) for hop in self.ends if hop and hop.verdict == "inconclusive"]
        sizes = [n for n in needed if n is not None]
        return max(sizes) if sizes and len(sizes) == len(needed) else None

    def _needed(self, hop: Hop) -> int | None:
        tally, limit = self.outcomes[hop.name].tally, self.gates.max_flips
        needed = []
        if gate(tally.paired.interval_pp, self.gates.max_drop_pp) == "inconclusive":
            needed.append(images_needed(tally.paired, self.gates.max_drop_pp / 100))
        interval = wilson_interval(tally.flips, tally.n)
        if limit is not None and gate(interval, limit) == "inconclusive":
            # The same formula with flips as losses and no gains: a single proportion.
            needed.append(images_needed(Paired(tally.n, tally.flips, 0), limit))
        sizes = [n for n in needed if n is not None]
        return max(*sizes, tally.n + 1) if sizes and len(sizes) == len(needed) else None
