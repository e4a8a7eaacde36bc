"""Classification: top-1 and top-5 accuracy, flips, and McNemar's paired comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Dataset, ImageDataset, match_classes
from optimizer.errors import DataError, UsageError
from optimizer.results import ExampleImage, Gates, Hop, VerdictName
from optimizer.tasks.accuracy_intervals import ANYTIME, FIXED, Intervals
from optimizer.tasks.one_output import as_classes
from optimizer.tasks.paired_statistics import (
    Paired,
    gate,
    images_needed,
    worst_verdict,
)
from optimizer.tasks.predictions import Recorder
from optimizer.tasks.sanity import check_early, check_reference
from optimizer.tasks.tally import Tally

__all__ = ["Classification"]

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Classification:
    """One class per image; predictions are logits, N x classes float32. See `Task`.

    Attributes:
        intervals: The kind of intervals that judge a hop.
    """

    intervals: Intervals = FIXED
    name: ClassVar[Literal["classification", "detection"]] = "classification"
    metric: ClassVar[str] = "top-1"
    outputs: ClassVar[str] = "logits"

    def for_gates(self, gates: Gates) -> Classification:
        """See `Task.for_gates`."""
        if gates.max_lost is not None:
            raise UsageError(
                "--max-lost limits lost detections, and this network is a classifier",
                hint="limit changed predictions instead: --max-flips 1%",
            )
        return self

    def match(
        self, dataset: ImageDataset, num_classes: int, classes: Sequence[str] | None
    ) -> ImageDataset:
        """See `Task.match`."""
        if dataset.objects is not None:
            raise DataError(
                f"{dataset.name} has boxes, but the network is a classifier",
                hint="give images with one class each, or a detector",
            )
        return match_classes(dataset, num_classes, classes)

    def stopping_early(self) -> Classification:
        """See `Task.stopping_early`."""
        return replace(self, intervals=ANYTIME)

    # --- the pass over the images --------------------------------------------------------------

    def read(self, outputs: NDArray[Any], dataset: Dataset, indices: NDArray[np.int64]) -> Logits:
        """See `Task.read`: the outputs are the logits, or one logit of a sigmoid."""
        del dataset, indices
        return as_classes(outputs)

    def pack(self, predictions: Sequence[Logits]) -> dict[str, NDArray[Any]]:
        """See `Task.pack`."""
        return {"logits": np.concatenate(predictions)}

    def unpack(self, arrays: Mapping[str, NDArray[Any]]) -> Logits:
        """See `Task.unpack`."""
        return arrays["logits"]

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
        return self.intervals.rate(reference.correct, reference.n)[0] > 1 / num_classes

    def fields(self, tally: Tally, dataset: Dataset, *, is_reference: bool) -> dict[str, Any]:
        """See `Task.fields`."""
        measured: dict[str, Any] = {
            "n": tally.n,
            "top1": tally.correct / tally.n,
            "top1_ci95": self.intervals.rate(tally.correct, tally.n),
            "top5": tally.top5,
        }
        if is_reference:
            return measured
        measured |= {
            "flips": tally.flips,
            "drop_pp": tally.paired.drop_pp,
            "drop_ci95_pp": self.intervals.drop_pp(tally.paired),
            "mcnemar_p": tally.paired.p,
            "sqnr_db": tally.noise.db,
            "max_abs_diff": tally.max_abs_diff,
            "worst_image": None if tally.worst is None else dataset.image_id(tally.worst),
        }
        if tally.n_vs_parent:
            measured |= {
                "n_vs_parent": None if tally.n_vs_parent == tally.n else tally.n_vs_parent,
                "flips_vs_parent": tally.flips_vs_parent,
                "sqnr_vs_parent_db": tally.noise_vs_parent.db,
            }
        return measured

    def verdict(self, tally: Tally, gates: Gates, *, labels_informative: bool) -> VerdictName:
        """See `Task.verdict`: the paired interval of the drop and the interval of the flips.

        If the labels are uninformative (the reference itself is at chance), a small drop proves
        nothing: the hop is then inconclusive if more predictions changed than the drop limit allows.
        It never passes where the reference is right on no image: there is no accuracy to lose.
        """
        paired, flips = tally.paired, tally.flips
        verdict = gate(self.intervals.drop_pp(paired), gates.max_drop_pp)
        if tally.correct + paired.losses - paired.gains == 0:
            verdict = worst_verdict(verdict, "inconclusive")
        if not labels_informative and verdict == "pass":
            changed = self.intervals.rate(flips, paired.n)[0]
            verdict = "inconclusive" if changed > gates.max_drop_pp / 100 else "pass"
        if gates.max_flips is None:
            return verdict
        return worst_verdict(verdict, gate(self.intervals.rate(flips, paired.n), gates.max_flips))

    def images_needed(self, tally: Tally, gates: Gates) -> int | None:
        """See `Task.images_needed`."""
        limit, needed = gates.max_flips, []
        if gate(self.intervals.drop_pp(tally.paired), gates.max_drop_pp) == "inconclusive":
            needed.append(images_needed(tally.paired, gates.max_drop_pp / 100))
        interval = self.intervals.rate(tally.flips, tally.n)
        if limit is not None and gate(interval, limit) == "inconclusive":
            # The same formula with flips as losses and no gains: a single proportion.
            needed.append(images_needed(Paired(tally.n, tally.flips, 0), limit))
        sizes = [n for n in needed if n is not None]
        return max(*sizes, tally.n + 1) if sizes and len(sizes) == len(needed) else None

    def examples(self, tallies: Mapping[str, Tally], dataset: ImageDataset) -> list[ExampleImage]:
        """See `Task.examples`: a sum of images names none of them."""
        del tallies, dataset
        return []

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

    def running(self, tally: Tally) -> str:
        """See `Task.running`."""
        low, high = self.intervals.drop_pp(tally.paired)
        return f"drop {tally.paired.drop_pp:.2f} pp ({low:.2f} to {high:.2f})"

    def drop(self, hop: Hop) -> str:
        """See `Task.drop`."""
        low, high = hop.drop_ci95_pp or (0.0, 0.0)
        return (
            f"top-1 drop {hop.drop_pp:.2f} pp ({self.intervals.words} {low:.2f} to {high:.2f}), "
            f"{hop.flips or 0:,} of {hop.n:,} predictions changed"
        )

    def significance(self, hop: Hop) -> str:
        """See `Task.significance`: McNemar's test."""
        return f"McNemar p = {hop.mcnemar_p:.1g}"

    def accuracy(self, hop: Hop) -> str | None:
        """See `Task.accuracy`."""
        return None if hop.top1 is None else f"{100 * hop.top1:.2f} %"
