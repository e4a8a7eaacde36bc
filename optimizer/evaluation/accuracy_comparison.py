"""Two validations held against each other without running anything again.

The stored predictions are paired image by image, so a change of 0.2 pp between two releases is
seen on 50,000 images where two separate accuracies would need half a million.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from optimizer.artifacts import digest
from optimizer.errors import ArtifactError, UsageError
from optimizer.evaluation.paired_statistics import Paired, gate, images_needed, wilson_interval
from optimizer.evaluation.predictions import Predictions, read_predictions
from optimizer.results import Interval, RunResult, ValidateResult, VerdictName, read_result

__all__ = ["AccuracyComparison", "compare", "missing"]


class AccuracyComparison(BaseModel):
    """One hop of the new results against one of the old."""

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

    Engines are paired by name; where each result has exactly one, these two are a pair whatever
    their names. Without engines the last graphs are compared.

    Args:
        old: ``validate.json`` or ``results.json``, with its predictions in the same folder.
        new: Likewise.
        max_drop_pp: Largest loss allowed, percentage points.

    Returns:
        One comparison a pair, in the order of the new results.

    Raises:
        UsageError: Other images, or no engine in common.
        ArtifactError: A file that is missing or damaged, or results without predictions.
    """
    (before, before_predictions), (after, after_predictions) = _load(old), _load(new)
    if before.dataset.sha256 != after.dataset.sha256:
        raise UsageError(
            f"{old} is about {before.dataset.name} ({before.dataset.n} images), {new} about "
            f"{after.dataset.name} ({after.dataset.n} images): other images cannot be compared",
            hint="validate both on the same data, with the same --limit and --seed",
        )
    same_labels = np.array_equal(before_predictions.labels, after_predictions.labels)
    if before_predictions.image_ids != after_predictions.image_ids or not same_labels:
        raise UsageError(
            "the two predictions files hold other images or labels, though the data is the same",
            hint="run resnet-opt validate again for both",
        )
    pairs, _ = _pairs(before, after)
    if not pairs:
        ends = [", ".join(_ends(one)) or "none" for one in (before, after)]
        raise UsageError(
            f"no engine is in both: {ends[0]} and {ends[1]}",
            hint="give the engines the same file names",
        )
    return [
        _compare(before_predictions, one, after_predictions, other, max_drop_pp)
        for one, other in pairs
    ]


def missing(old: Path, new: Path) -> list[str]:
    """Engines of the old results that `compare` holds nothing against: gone, or failed since."""
    return _pairs(_validated(old), _validated(new))[1]


def _validated(path: Path) -> ValidateResult:
    result = read_result(path)
    if isinstance(result, RunResult) and result.validate_ is not None:
        result = result.validate_
    if not isinstance(result, ValidateResult):
        raise UsageError(f"{path} holds no accuracy", hint="give results of validate or run")
    return result


def _load(path: Path) -> tuple[ValidateResult, Predictions]:
    result = _validated(path)
    if result.predictions_file is None:
        raise ArtifactError(
            f"{path} was written without predictions, so images cannot be paired",
            hint="run resnet-opt validate again and keep its predictions",
        )
    file = path.parent / result.predictions_file
    predictions = read_predictions(file)
    fault = None
    if predictions.dataset_sha256 != result.dataset.sha256:
        fault = "it is about other images"
    elif result.predictions_sha256 is not None:
        if digest(file) != result.predictions_sha256:
            fault = "it was written over since, or is that of another validation"
    elif not _says_the_same(result, predictions):
        fault = "its accuracy is another one"
    if fault is not None:
        raise ArtifactError(
            f"{file.name} does not belong to {path}: {fault}",
            hint="keep the two files of one validation together under their own names "
            "(validate -o old.json keeps old.predictions.npz), or run it again",
        )
    return result, predictions


def _says_the_same(result: ValidateResult, predictions: Predictions) -> bool:
    """Whether the accuracies of results without a digest are those of the predictions."""
    return all(
        bool(np.isclose((predictions.top1(hop.name) == predictions.labels).mean(), hop.top1))
        for hop in result.hops
        if hop.top1 is not None and hop.name in predictions.classes
    )


def _ends(result: ValidateResult) -> list[str]:
    """Engines that ran, or else the hops that nothing follows."""
    compared = [hop for hop in result.hops if hop.status == "ok" and hop.parent is not None]
    engines = [hop.name for hop in compared if hop.engine is not None]
    parents = {hop.parent for hop in compared}
    return engines or [hop.name for hop in compared if hop.name not in parents]


def _pairs(old: ValidateResult, new: ValidateResult) -> tuple[list[tuple[str, str]], list[str]]:
    """What is held against what, and what of the old results against nothing."""
    before, after = _ends(old), _ends(new)
    present = {hop.name for hop in new.hops}  # failed ones too: these are no other engine's pair
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
    words = {
        "pass": f"stays within {limit:g} pp",
        "fail": f"loses more than {limit:g} pp",
        "inconclusive": f"may lose more than {limit:g} pp"
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
        reason=f"{new_hop} {words[verdict]} against {old_hop}: drop {paired.drop_pp:.2f} pp "
        f"(95 % interval {low:.2f} to {high:.2f}) on {n:,} images",
    )
