"""Classification: top-1 and top-5 accuracy, flips, and McNemar's paired comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Dataset, ImageDataset, match_classes
from optimizer.results import Gates, Hop, VerdictName
from optimizer.tasks.paired_statistics import (
    Paired,
    gate,
    images_needed,
    wilson_interval,
    worst_verdict,
)
from optimizer.tasks.predictions import Recorder
from optimizer.tasks.sanity import check_early, check_reference
from optimizer.tasks.tally import Tally

__all__ = ["Classification"]

Logits = NDArray[np.float32]


class Classification:
    """One class per image; predictions are logits, N x classes float32. See `Task`."""

    name = "classification"
    metric = "top-1"
    outputs = "logits"

    def match(
        self, dataset: ImageDataset, num_classes: int, classes: Sequence[str] | None
    ) -> ImageDataset:
        """See `Task.match`."""
        return match_classes(dataset, num_classes, classes)

    def check_gates(self, gates: Gates) -> None:
        """See `Task.check_gates`: every limit applies."""

    # --- the pass over the images --------------------------------------------------------------

    def read(self, outputs: NDArray[Any], dataset: Dataset, indices: NDArray[np.int64]) -> Logits:
        """See `Task.read`: the outputs are the logits."""
        del dataset, indices
        return outputs

    def tally(self) -> Tally:
        """See `Task.tally`."""
        return Tally()

    def add(
        self,
        tally: Tally,
        predictions: Logits,
        dataset: Dataset,
        indices: NDArray[np.int64],
        others: tuple[Logits, Logits | None],
    ) -> None:
        """See `Task.add`."""
        tally.add(predictions, dataset.labels[indices], indices, *others)

    def recorder(self) -> Recorder:
        """See `Task.recorder`."""
        return Recorder()

    def check_early(self, reference: Tally, expected: float | None, dataset: str) -> None:
        """See `Task.check_early`."""
        check_early(reference.correct, reference.n, expected, dataset)

    # --- after the pass ------------------------------------------------------------------------

    def finish(
        self, tallies: Mapping[str, Tally], parents: Mapping[str, str], dataset: Dataset
    ) -> None:
        """See `Task.finish`: running sums are complete at any time."""

    def check_reference(self, reference: Tally, expected: float | None, dataset: str) -> None:
        """See `Task.check_reference`."""
        check_reference(reference.correct, reference.n, expected, dataset)

    def labels_informative(self, reference: Tally, num_classes: int) -> bool:
        """See `Task.labels_informative`: the interval of top-1 lies above guessing."""
        return wilson_interval(reference.correct, reference.n)[0] > 1 / num_classes

    def fields(self, tally: Tally, dataset: Dataset, *, is_reference: bool) -> dict[str, Any]:
        """See `Task.fields`."""
        measured: dict[str, Any] = {
            "n": tally.n,
            "top1": tally.correct / tally.n,
            "top1_ci95": wilson_interval(tally.correct, tally.n),
            "top5": tally.top5,
        }
        if is_reference:
            return measured
        measured |= {
            "flips": tally.flips,
            "drop_pp": tally.paired.drop_pp,
            "drop_ci95_pp": tally.paired.interval_pp,
            "mcnemar_p": tally.paired.p,
            "sqnr_db": tally.noise.db,
            "max_abs_diff": tally.max_abs_diff,
            "worst_image": None if tally.worst is None else dataset.image_id(tally.worst),
        }
        if tally.has_parent:
            measured |= {
                "flips_vs_parent": tally.flips_vs_parent,
                "sqnr_vs_parent_db": tally.noise_vs_parent.db,
            }
        return measured

    def verdict(self, tally: Tally, gates: Gates, *, labels_informative: bool) -> VerdictName:
        """See `Task.verdict`: the paired interval of the drop and Wilson's interval of the flips.

        If the labels are uninformative (the reference itself is at chance), a small drop proves
        nothing: the hop is then inconclusive if more predictions changed than the drop limit allows.
        """
        paired, flips = tally.paired, tally.flips
        verdict = gate(paired.interval_pp, gates.max_drop_pp)
        if not labels_informative and verdict == "pass":
            changed = wilson_interval(flips, paired.n)[0]
            verdict = "inconclusive" if changed > gates.max_drop_pp / 100 else "pass"
        if gates.max_flips is None:
            return verdict
        return worst_verdict(verdict, gate(wilson_interval(flips, paired.n), gates.max_flips))

    def images_needed(self, tally: Tally, gates: Gates) -> int | None:
        """See `Task.images_needed`."""
        limit, needed = gates.max_flips, []
        if gate(tally.paired.interval_pp, gates.max_drop_pp) == "inconclusive":
            needed.append(images_needed(tally.paired, gates.max_drop_pp / 100))
        interval = wilson_interval(tally.flips, tally.n)
        if limit is not None and gate(interval, limit) == "inconclusive":
            # The same formula with flips as losses and no gains: a single proportion.
            needed.append(images_needed(Paired(tally.n, tally.flips, 0), limit))
        sizes = [n for n in needed if n is not None]
        return max(*sizes, tally.n + 1) if sizes and len(sizes) == len(needed) else None

    # --- words ---------------------------------------------------------------------------------

    def net_loss(self, tally: Tally, *, to_parent: bool) -> float:
        """See `Task.net_loss`: images lost minus images gained."""
        if to_parent:
            return tally.parent_losses - tally.parent_gains
        return tally.losses - tally.gains

    def changes(self, tally: Tally, *, to_parent: bool) -> int:
        """See `Task.changes`: flips."""
        return tally.flips_vs_parent if to_parent else tally.flips

    def exceeds_by_drop(self, hop: Hop, gates: Gates) -> bool:
        """See `Task.exceeds_by_drop`."""
        low, _ = hop.drop_ci95_pp or (0.0, 0.0)
        return low > gates.max_drop_pp

    def limits(self, gates: Gates) -> str:
        """See `Task.limits`."""
        if gates.max_flips is None:
            return f"the limit of {gates.max_drop_pp:g} pp"
        flips = f"{100 * gates.max_flips:g} % changed predictions"
        return f"the limits of {gates.max_drop_pp:g} pp and {flips}"

    def drop(self, hop: Hop) -> str:
        """See `Task.drop`."""
        low, high = hop.drop_ci95_pp or (0.0, 0.0)
        return (
            f"top-1 drop {hop.drop_pp:.2f} pp (95 % interval {low:.2f} to {high:.2f}), "
            f"{hop.flips or 0:,} of {hop.n:,} predictions changed"
        )

    def significance(self, hop: Hop) -> str:
        """See `Task.significance`: McNemar's test."""
        return f"McNemar p = {hop.mcnemar_p:.1g}"

    def accuracy(self, hop: Hop) -> str | None:
        """See `Task.accuracy`."""
        return None if hop.top1 is None else f"{100 * hop.top1:.2f} %"
