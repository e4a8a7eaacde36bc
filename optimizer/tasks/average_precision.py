"""COCO's average precision with a weight per image, for paired bootstraps over images.

pycocotools matches detections with objects once. A resampled dataset is then a weight per image, and
average precision follows from the match tables in a few array operations instead of another
evaluation. With all weights 1 the result is pycocotools' own (tests compare the two).

Matching, interpolation and areas: Lin et al. 2014, "Microsoft COCO", and the reference code that is
pycocotools. Interval: percentile bootstrap of the difference over images (Efron and Tibshirani 1993,
chapter 13); both networks get the same weights, so what they have in common cancels. If two networks
have the same matches, the interval is [0, 0]: the bootstrap knows no differences that no image showed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Objects
from optimizer.results import Interval
from optimizer.tasks.boxes import Detections

__all__ = [
    "AREAS",
    "IOUS",
    "MatchTables",
    "Resampled",
    "bootstrap_drop",
    "drop_interval",
    "match_objects",
    "resampled",
]

IOUS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
"""COCO's: up to 32 squared, up to 96 squared, and larger, in pixels of the image."""
_RECALLS = np.linspace(0, 1, 101)
_EPSILON = np.spacing(1)
_MAX_DETECTIONS = 100
_CHUNK = 1 << 22
"""Weights of detections held at once."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Table:
    """Matches of one class and area, detections by descending score.

    Attributes:
        images: D int64, image of each detection.
        hits: T x D bool, detections matched with an object that counts.
        misses: T x D bool, detections matched with nothing.
        positives: Objects that count, by image, (N,).
    """

    images: NDArray[np.int64]
    hits: NDArray[np.bool_]
    misses: NDArray[np.bool_]
    positives: Float64


@dataclass(frozen=True)
class MatchTables:
    """Matches of all classes.

    Attributes:
        images: Number of images.
        tables: By area and class; ``None`` for a class without objects and detections.
    """

    images: int
    tables: dict[str, list[_Table | None]]

    def by_class(self, area: str = "all", weights: Float64 | None = None) -> Float64:
        """Average precision of each class at each IoU.

        Args:
            area: One of `AREAS`.
            weights: Draws x images; by default one draw of ones.

        Returns:
            Draws x classes x IoUs; NaN for a class without objects.
        """
        if weights is None:
            weights = np.ones((1, self.images))
        tables = self.tables[area]
        result = np.full((len(weights), len(tables), len(IOUS)), np.nan)
        for index, table in enumerate(tables):
            if table is not None and table.positives.any():
                step = max(1, _CHUNK // max(1, len(table.images)))
                for start in range(0, len(weights), step):
                    part = slice(start, start + step)
                    result[part, index] = _precisions(table, weights[part])
        return result

    def mean(
        self, area: str = "all", weights: Float64 | None = None, iou: float | None = None
    ) -> Float64:
        """Mean average precision of each draw.

        The mean is over classes with objects, and over IoUs unless one is given; NaN without objects.
        """
        values = self.by_class(area, weights)
        if iou is not None:
            values = values[:, :, [int(np.abs(IOUS - iou).argmin())]]
        return _mean(values)

    def precision_at_recall(self, iou: float) -> Float64:
        """Interpolated precision at the recalls 0, 0.01, … 1, mean over classes with objects.

        Its mean over the recalls is the average precision at this IoU. NaN without objects.

        Args:
            iou: One of `IOUS`.
        """
        row = int(np.abs(IOUS - iou).argmin())
        curves = []
        for table in self.tables["all"]:
            if table is None or not table.positives.any():
                continue
            hits, misses = table.hits[row], table.misses[row]
            right, wrong = np.cumsum(hits)[hits], np.cumsum(misses)[hits]
            precision = np.maximum.accumulate((right / (right + wrong + _EPSILON))[::-1])[::-1]
            first = np.searchsorted(right / table.positives.sum(), _RECALLS, side="left")
            curves.append(np.append(precision, 0.0)[np.minimum(first, len(precision))])
        return np.mean(curves, axis=0) if curves else np.full(len(_RECALLS), np.nan)


def _mean(values: Float64) -> Float64:
    """Means of draws x classes x IoUs for each draw, over what is not NaN."""
    counts = np.isfinite(values).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(values, axis=(1, 2)) / np.where(counts, counts, np.nan))


def _precisions(table: _Table, weights: Float64) -> Float64:
    """Interpolated average precision, draws x IoUs.

    Recall grows only at hits, and interpolated precision is the largest at or after a position, which
    is always at a hit. So only the hits' positions are looked at.
    """
    per_detection = weights[:, table.images]
    positives = weights @ table.positives
    result = np.full((len(weights), len(IOUS)), np.nan)
    for index, (hits, misses) in enumerate(zip(table.hits, table.misses, strict=True)):
        positions = np.flatnonzero(hits)
        if not len(positions):
            result[:, index] = 0
            continue
        right = np.cumsum(per_detection[:, positions], axis=1)
        wrong = np.cumsum(per_detection * misses, axis=1)[:, positions]
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = right / positives[:, None]
        precision = right / (right + wrong + _EPSILON)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Each hit reaches some of the recall levels for the first time, at the precision there.
        reached = np.searchsorted(_RECALLS, np.nan_to_num(recall), side="right")
        newly = np.diff(reached, axis=1, prepend=0)
        result[:, index] = (envelope * newly).sum(axis=1) / len(_RECALLS)
    result[positives == 0] = np.nan
    return result


def match_objects(
    objects: Sequence[Objects], detections: Sequence[Detections], num_classes: int
) -> MatchTables:
    """Match detections with objects by COCO's rules.

    Args:
        objects: Objects of each image.
        detections: Detections of each image, in the same order.
        num_classes: Number of classes.
    """
    from pycocotools.cocoeval import COCOeval

    images = [{"id": i + 1} for i in range(len(objects))]
    categories = [{"id": i + 1} for i in range(num_classes)]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        truth = _indexed(images, categories, _annotations(objects))
        found = _indexed(images, categories, _results(detections))
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.params.maxDets = [_MAX_DETECTIONS]
        evaluator.evaluate()
    flat: NDArray[Any] = np.empty(len(evaluator.evalImgs), object)
    flat[:] = evaluator.evalImgs
    entries: NDArray[Any] = flat.reshape(num_classes, len(AREAS), len(objects))
    tables = {
        area: [_table(entries[k, a], len(objects)) for k in range(num_classes)]
        for a, area in enumerate(AREAS)
    }
    return MatchTables(len(objects), tables)


def _indexed(images: list[Any], categories: list[Any], annotations: list[Any]) -> Any:
    from pycocotools.coco import COCO

    indexed = COCO()
    indexed.dataset = {"images": images, "categories": categories, "annotations": annotations}
    indexed.createIndex()
    return indexed


def _annotations(objects: Sequence[Objects]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for image, found in enumerate(objects):
        for index in range(len(found.classes)):
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": image + 1,
                    "category_id": int(found.classes[index]) + 1,
                    "bbox": _as_xywh(found.boxes[index]),
                    "area": float(found.areas[index]),
                    "iscrowd": int(found.crowd[index]),
                }
            )
    return entries


def _results(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for image, found in enumerate(detections):
        for index in range(len(found.classes)):
            box = _as_xywh(found.boxes[index])
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": image + 1,
                    "category_id": int(found.classes[index]) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "score": float(found.scores[index]),
                    "iscrowd": 0,
                }
            )
    return entries


def _as_xywh(box: NDArray[np.float32]) -> list[float]:
    left, top, right, bottom = (float(value) for value in box)
    return [left, top, right - left, bottom - top]


def _table(entries: NDArray[Any], images: int) -> _Table | None:
    present = [(i, entry) for i, entry in enumerate(entries) if entry is not None]
    if not present:
        return None
    positives = np.zeros(images)
    for image, entry in present:
        positives[image] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    scores = np.concatenate([np.asarray(e["dtScores"], np.float64) for _, e in present])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([e["dtMatches"] for _, e in present], axis=1)[:, order] != 0
    ignored = np.concatenate([e["dtIgnore"] for _, e in present], axis=1)[:, order] != 0
    owners = np.concatenate([np.full(len(e["dtScores"]), i, np.int64) for i, e in present])[order]
    counts = ~ignored.all(axis=0)  # the others, such as those of other sizes, change nothing
    hits, misses = matched & ~ignored, ~matched & ~ignored
    return _Table(owners[counts], hits[:, counts], misses[:, counts], positives)


@dataclass(frozen=True)
class Resampled:
    """Average precision in each of the resampled datasets.

    Attributes:
        mean: Over classes and IoUs, (draws,).
        by_area: The same for objects of each size, (draws,) each.
        by_class: Mean over IoUs, draws x classes; NaN for a class without objects.
    """

    mean: Float64
    by_area: dict[str, Float64]
    by_class: Float64


def resampled(tables: MatchTables, *, draws: int = 1000, seed: int = 0) -> Resampled:
    """Average precision of resampled datasets; equal seeds draw the same images.

    Args:
        tables: Matches of one network.
        draws: Resampled datasets.
        seed: Seed of the resampling.
    """
    random = np.random.default_rng(seed)
    n = tables.images
    weights = random.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    values = tables.by_class(weights=weights)
    return Resampled(
        mean=_mean(values),
        by_area={area: tables.mean(area, weights) for area in AREAS[1:]},
        by_class=values.mean(axis=2),
    )


def drop_interval(reference: Float64, other: Float64) -> tuple[Interval, float] | None:
    """The 95 % interval of a drop, and its standard error, from paired draws.

    Args:
        reference: Values of the reference, (draws,).
        other: Values of another network in the same draws.

    Returns:
        Lower and upper bound and standard error, as fractions of one; ``None`` if no draw has both
        values, as for a class without objects.
    """
    drops = reference - other
    drops = drops[np.isfinite(drops)]
    if not len(drops):
        return None
    low, high = np.quantile(drops, [0.025, 0.975])
    return (float(low), float(high)), float(drops.std())


def bootstrap_drop(
    reference: MatchTables, other: MatchTables, *, draws: int = 1000, seed: int = 0
) -> tuple[Interval, float]:
    """The 95 % interval of the drop in mean average precision, and its standard error.

    Args:
        reference: Matches of the reference.
        other: Matches of another network on the same images.
        draws: Resampled datasets.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound and standard error, as fractions of one; zeros without objects.
    """
    before, after = (resampled(t, draws=draws, seed=seed).mean for t in (reference, other))
    return drop_interval(before, after) or ((0.0, 0.0), 0.0)
