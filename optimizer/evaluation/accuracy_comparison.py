"""Compare two validations from their stored predictions, without running anything again.

Predictions are paired image by image, so 50,000 images resolve a change of 0.2 pp between two
releases; two separate accuracies would need half a million.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from optimizer.artifacts import digest
from optimizer.errors import ArtifactError, UsageError
from optimizer.results import Interval, RunResult, ValidateResult, VerdictName, read_result
from optimizer.tasks.paired_statistics import Paired, gate, images_needed, wilson_interval
from optimizer.tasks.predictions import Predictions, read_predictions

__all__ = ["AccuracyComparison", "compare", "missing"]


class AccuracyComparison(BaseModel):
    """One hop of the new results compared with one of the old."""

    model_config = ConfigDict(extra="forbid")

    old: str
    new: str
    n: int
    old_top1: float
    old_top1_ci95: Interval
    new_top1: float
    new_top1_ci95: Interval
    flips: int
    drop_pp: float
    """Loss of top-1 from old to new, percentage points; negative is a gain."""
    drop_ci95_pp: Interval
    mcnemar_p: float
    max_drop_pp: float
    images_needed: int | None
    verdict: VerdictName
    reason: str


def compare(old: Path, new: Path, *, max_drop_pp: float) -> list[AccuracyComparison]:
    """Compare the engines of two results of ``validate`` (or ``run``) on the same images.

    Engines are paired by name. If each result has exactly one, those two are paired whatever their
    names. Without engines, the last graph of each chain is compared.

    Args:
        old: ``validate.json`` or ``results.json``, with its predictions in the same folder.
        new: Likewise.
        max_drop_pp: Largest loss allowed, percentage points.

    Returns:
        One comparison per pair, in the order of the new results.

    Raises:
        UsageError: The images differ, or no engine is in both results.
        ArtifactError: A file is missing or damaged, or a result has no predictions.
    """
    (before, before_predictions), (after, after_predictions) = _load(old), _load(new)
    if before.dataset.sha256 != after.dataset.sha256:
        raise UsageError(
            f"{old} and {new} were validated on different images: {before.dataset.name} "
            f"({before.dataset.n} images) and {after.dataset.name} ({after.dataset.n} images)",
            hint="validate both on the same data, with the same --limit and --seed",
        )
    same_labels = np.array_equal(before_predictions.labels, after_predictions.labels)
    if before_predictions.image_ids != after_predictions.image_ids or not same_labels:
        raise UsageError(
            "the two predictions files differ in images or labels, although the data is the same",
            hint="run resnet-opt validate again for both results",
        )
    pairs, _ = _pairs(before, after)
    if not pairs:
        names = [", ".join(_ends(result)) or "none" for result in (before, after)]
        raise UsageError(
            f"no engine is in both results: {names[0]} and {names[1]}",
            hint="give the engines the same file names",
        )
    return [
        _compare(before_predictions, old_hop, after_predictions, new_hop, max_drop_pp)
        for old_hop, new_hop in pairs
    ]


def missing(old: Path, new: Path) -> list[str]:
    """Engines of the old results without a counterpart in the new ones: removed or failed."""
    return _pairs(_validated(old), _validated(new))[1]


def _validated(path: Path) -> ValidateResult:
    result = read_result(path)
    if isinstance(result, RunResult) and result.validate_ is not None:
        result = result.validate_
    if not isinstance(result, ValidateResult):
        raise UsageError(f"{path} contains no accuracy", hint="give a result of validate or run")
    return result


def _load(path: Path) -> tuple[ValidateResult, Predictions]:
    result = _validated(path)
    if result.predictions_file is None:
        raise ArtifactError(
            f"{path} has no predictions file, so images cannot be paired",
            hint="run resnet-opt validate again and keep its predictions file",
        )
    file = path.parent / result.predictions_file
    predictions = read_predictions(file)
    mismatch = None
    if predictions.dataset_sha256 != result.dataset.sha256:
        mismatch = "it covers different images"
    elif result.predictions_sha256 is not None:
        if digest(file) != result.predictions_sha256:
            mismatch = "it was overwritten, or comes from another validation"
    elif not _accuracies_match(result, predictions):
        mismatch = "its accuracy differs"
    if mismatch is not None:
        raise ArtifactError(
            f"{file.name} does not belong to {path}: {mismatch}",
            hint="keep both files of a validation under the names they were written with "
            "(validate -o old.json writes old.predictions.npz), or run it again",
        )
    return result, predictions


def _accuracies_match(result: ValidateResult, predictions: Predictions) -> bool:
    """Whether the predictions reproduce the accuracies; for results without a digest."""
    return all(
        bool(np.isclose((predictions.top1(hop.name) == predictions.labels).mean(), hop.top1))
        for hop in result.hops
        if hop.top1 is not None and hop.name in predictions.classes
    )


def _ends(result: ValidateResult) -> list[str]:
    """Engines that ran; without any, the last hop of each chain."""
    compared = [hop for hop in result.hops if hop.status == "ok" and hop.parent is not None]
    engines = [hop.name for hop in compared if hop.engine is not None]
    parents = {hop.parent for hop in compared}
    return engines or [hop.name for hop in compared if hop.name not in parents]


def _pairs(old: ValidateResult, new: ValidateResult) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of old and new hop names, and the old hops without a counterpart."""
    before, after = _ends(old), _ends(new)
    present = {hop.name for hop in new.hops}  # a failed engine is not paired with another one
    if len(before) == len(after) == 1 and (before == after or before[0] not in present):
        return [(before[0], after[0])], []
    pairs = [(name, name) for name in after if name in before]
    return pairs, [name for name in before if name not in after]


def _compare(
    old: Predictions, old_hop: str, new: Predictions, new_hop: str, limit: float
) -> AccuracyComparison:
    labels, n = old.labels, len(old.labels)
    before, after = old.top1(old_hop), new.top1(new_hop)
    right_before, right_after = before == labels, after == labels
    paired = Paired(
        n, int((right_before & ~right_after).sum()), int((right_after & ~right_before).sum())
    )
    verdict = gate(paired.interval_pp, limit)
    needed = images_needed(paired, limit / 100) if verdict == "inconclusive" else None
    low, high = paired.interval_pp
    outcome = {
        "pass": f"stays within the limit of {limit:g} pp",
        "fail": f"loses more than the limit of {limit:g} pp",
        "inconclusive": f"may lose more than the limit of {limit:g} pp"
        + (f" (about {needed:,} images would decide)" if needed else ""),
    }
    return AccuracyComparison(
        old=old_hop,
        new=new_hop,
        n=n,
        old_top1=float(right_before.mean()),
        old_top1_ci95=wilson_interval(int(right_before.sum()), n),
        new_top1=float(right_after.mean()),
        new_top1_ci95=wilson_interval(int(right_after.sum()), n),
        flips=int((before != after).sum()),
        drop_pp=paired.drop_pp,
        drop_ci95_pp=paired.interval_pp,
        mcnemar_p=paired.p,
        max_drop_pp=limit,
        images_needed=needed,
        verdict=verdict,
        reason=f"{new_hop} {outcome[verdict]} relative to {old_hop}: drop {paired.drop_pp:.2f} pp "
        f"(95 % interval {low:.2f} to {high:.2f}) on {n:,} images",
    )
