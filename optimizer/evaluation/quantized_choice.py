"""Whether an INT8 network that was trained is better than the one that the training started at.

Both are executed as written on the same held-out images. Top-1 decides if McNemar's test finds a
difference; otherwise the images decide whose class differs from the FP32 network's (flips). Without a
difference in either, the network that was not trained is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from optimizer.artifacts import scratch_folder
from optimizer.data import ImageDataset
from optimizer.errors import ResnetOptError
from optimizer.evaluation.chain import REFERENCE, Chain
from optimizer.evaluation.validation import validate
from optimizer.options import HopOptions
from optimizer.progress import Progress
from optimizer.results import Gates, Hop, QuantizedCandidate, QuantizedTrainingResult
from optimizer.tasks.paired_statistics import Paired, mcnemar_p
from optimizer.tasks.predictions import Predictions, read_predictions

__all__ = ["LEAST_HELD_OUT", "choose_quantized", "decide"]

_SIGNIFICANT = 0.05
LEAST_HELD_OUT = 6
"""With fewer images McNemar's test never finds a difference: 2 * 0.5 ** 5 > 0.05."""

Kept = Literal["qat", "ptq"]


@dataclass(frozen=True)
class Difference:
    """Counts of images in which the trained network differs from the other.

    Attributes:
        top1: Losses and gains of the trained network.
        flips_added: Images that only the trained network flips.
        flips_avoided: Images that only the other one flips.
    """

    top1: Paired
    flips_added: int
    flips_avoided: int

    @property
    def flips_p(self) -> float:
        """Exact McNemar p-value of the difference in flips."""
        return mcnemar_p(self.flips_added, self.flips_avoided)


def choose_quantized(
    fp32: Path,
    ptq: Path,
    qat: Path,
    held_out: ImageDataset,
    *,
    target: str,
    calibration_images: int,
    progress: Progress | None = None,
) -> QuantizedTrainingResult:
    """Compare two INT8 graphs with the FP32 graph, image by image.

    Args:
        fp32: The FP32 graph that both were made from.
        ptq: The graph that was not trained.
        qat: The graph that was.
        held_out: Labelled images, none of which was trained or calibrated on.
        target: The engine that both are for.
        calibration_images: Images that the first one was calibrated on.
        progress: Receives progress updates.

    Raises:
        ResnetOptError: One of the graphs could not be executed.
    """
    with scratch_folder("qat") as folder:
        file = folder / "held-out.npz"
        result = validate(
            [Chain.of(ptq, label="PTQ"), Chain.of(qat, label="QAT")],
            fp32,
            held_out,
            Gates(max_drop_pp=100.0),
            HopOptions(hops="all"),
            predictions=file,
            progress=progress,
        )
        predictions = read_predictions(file)
    reference, *compared = result.hops
    if failed := next((hop for hop in compared if hop.status != "ok"), None):
        raise ResnetOptError(f"{failed.name} could not be executed: {failed.error}")
    first, last = compared[0], compared[-1]  # one hop if the training changed nothing
    difference = _difference(predictions, first.name, last.name)
    kept, reason = decide(difference)
    low, high = difference.top1.interval_pp
    assert reference.top1 is not None
    return QuantizedTrainingResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target=target,
        dataset=result.dataset,
        calibration_images=calibration_images,
        fp32_top1=reference.top1,
        ptq=_candidate(first),
        qat=_candidate(last),
        top1_lost=difference.top1.losses,
        top1_gained=difference.top1.gains,
        gain_pp=-difference.top1.drop_pp,
        gain_ci95_pp=(-high, -low),
        top1_p=difference.top1.p,
        flips_added=difference.flips_added,
        flips_avoided=difference.flips_avoided,
        flips_p=difference.flips_p,
        kept=kept,
        reason=reason,
    )


def _difference(predictions: Predictions, before: str, after: str) -> Difference:
    labels = predictions.labels
    exact, ptq, qat = (predictions.top1(name) for name in (REFERENCE, before, after))
    right_before, right_after = ptq == labels, qat == labels
    flips_before, flips_after = ptq != exact, qat != exact
    return Difference(
        Paired(
            len(labels),
            int(np.sum(right_before & ~right_after)),
            int(np.sum(right_after & ~right_before)),
        ),
        int(np.sum(flips_after & ~flips_before)),
        int(np.sum(flips_before & ~flips_after)),
    )


def decide(difference: Difference) -> tuple[Kept, str]:
    """Which network is kept, and one sentence why."""
    top1 = difference.top1
    counts = f"top-1 {top1.gains} images gained, {top1.losses} lost (p = {top1.p:.2g})"
    flips = (
        f"flips of {difference.flips_avoided} images avoided, {difference.flips_added} added "
        f"(p = {difference.flips_p:.2g})"
    )
    if top1.p < _SIGNIFICANT and top1.gains > top1.losses:
        return "qat", f"QAT is better than PTQ: {counts}"
    if top1.p < _SIGNIFICANT:
        return "ptq", f"QAT is worse than PTQ, which is kept: {counts}"
    if difference.flips_p < _SIGNIFICANT and difference.flips_avoided > difference.flips_added:
        return "qat", f"QAT is closer to FP32 than PTQ: {flips}; {counts}"
    return "ptq", (
        f"QAT is not better than PTQ on {top1.n:,} images, so PTQ is kept: {counts}; {flips}"
    )


def _candidate(hop: Hop) -> QuantizedCandidate:
    values = (hop.top1, hop.top1_ci95, hop.flips, hop.drop_pp, hop.drop_ci95_pp)
    top1, interval, flips, drop, drop_interval = values
    assert top1 is not None
    assert interval is not None
    assert flips is not None
    assert drop is not None
    assert drop_interval is not None
    return QuantizedCandidate(
        top1=top1,
        top1_ci95=interval,
        flips=flips,
        drop_pp=drop,
        drop_ci95_pp=drop_interval,
        sqnr_db=hop.sqnr_db,
    )
