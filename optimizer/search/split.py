"""The images of the search: disjoint from those for calibration and for the final validation.

If layers were chosen on the calibration images, some would be kept only because they fix these very
images; if they were chosen on the validation images, the result of the validation would be
optimistically biased.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset, stratified_subset
from optimizer.errors import DataError
from optimizer.precision.int8 import Encodings
from optimizer.precision.int8.encode import LEAST_IMAGES
from optimizer.precision.int8.simulation import (
    batches,
    exact_parameters,
    quantized_parameters,
)
from optimizer.search.variants import Variants
from optimizer.search.walk import Counts
from optimizer.tasks.one_output import as_classes
from optimizer.tasks.paired_statistics import drop_interval, drop_intervals
from optimizer.tasks.tally import Tally

__all__ = ["Budget", "Measured", "Split", "split_images"]

_SEARCH_IMAGES = 512
_BATCH = 32
_MAX_EXPECTED_FLIPS = 0.5


def split_images(dataset: ImageDataset, calibration: int) -> tuple[ImageDataset, ...]:
    """Split off the calibration images, and up to 512 others for the search; both stratified.

    The split depends on the labels. Split the dataset as opened, before `match_classes` maps labels to
    outputs, so that every caller gets the same images.

    Args:
        dataset: Labelled images, as opened.
        calibration: Number of calibration images; at most half of the dataset is used.

    Returns:
        The calibration images and the search images.

    Raises:
        DataError: Too few images to calibrate.
    """
    count = min(calibration, len(dataset) // 2)
    if count < LEAST_IMAGES:
        raise DataError(
            f"{len(dataset)} images are too few for calibration and search",
            hint=f"use at least {2 * LEAST_IMAGES}, better 1,000: --calib",
        )
    chosen = stratified_subset(dataset.labels, count)
    rest = dataset.select(np.setdiff1d(np.arange(len(dataset)), chosen))
    searched = stratified_subset(rest.labels, min(_SEARCH_IMAGES, len(rest)))
    return dataset.select(chosen), rest.select(searched)


@dataclass(frozen=True)
class Measured:
    """Accuracy of a variant on the search images.

    Flips are rare: a few hundred images may show none by chance. So the logit error of each image is
    also added to the FP32 logits of every other image, which gives one count per pair of images and
    shows the effect of the noise on close decisions before an image actually flips. (This assumes
    that the error is independent of the image.)

    Attributes:
        tally: The actual counts.
        losses, gains, flips: Expected counts for the same number of images, from all pairs.
    """

    tally: Tally
    losses: float
    gains: float
    flips: float

    @property
    def counts(self) -> Counts:
        """Images that change their class."""
        return Counts(self.tally.flips, self.tally.losses, self.tally.gains)

    @property
    def expected_changes(self) -> float:
        """Expected flips, from all pairs."""
        return self.flips

    @property
    def words(self) -> str:
        """What changed, for a sentence."""
        return f"{self.tally.flips} of {self.tally.n} search images change class"

    @property
    def drop_upper_pp(self) -> float:
        """Upper end of the paired 95 % interval of the drop, percentage points.

        Conservative: uses the larger of the actual and expected losses, and the smaller gains.
        """
        losses = max(self.tally.losses, self.losses)
        gains = min(self.tally.gains, self.gains)
        return float(100 * drop_intervals(losses, gains, self.tally.n)[1])

    @property
    def db(self) -> float:
        """SQNR of the logits, dB; infinite without noise."""
        db = self.tally.noise.db
        return float("inf") if db is None else db


@dataclass(frozen=True)
class Budget:
    """The top-1 drop, in percentage points, that the images must rule out.

    The upper end of the paired interval must be below it, as in the final validation. On images that
    the network has memorized, every flip is a loss, so this also bounds the flips. If there are so
    few images that even no loss at all could not rule out the drop, no image may change its class,
    and fewer than 0.5 flips may be expected.
    """

    max_drop_pp: float

    def holds(self, measured: Measured) -> bool:
        """Whether the graph is within the budget on these images."""
        if 100 * drop_interval(0, 0, measured.tally.n)[1] >= self.max_drop_pp:
            return measured.tally.flips == 0 and measured.flips < _MAX_EXPECTED_FLIPS
        return measured.drop_upper_pp < self.max_drop_pp


class Split:
    """The search images with the FP32 network's logits.

    Args:
        variants: The graph. The equalization of its encodings is applied to the exact network too,
            which does not change the output.
        images: Batches in the graph's input format.
        labels: int64[N].
    """

    def __init__(
        self,
        variants: Variants,
        images: Iterable[NDArray[Any]],
        labels: NDArray[np.int64],
    ) -> None:
        self._simulation, self._work = variants.simulation, variants.work
        self._images = list(images)
        self._labels = labels
        exact = exact_parameters(variants.topology, variants.base.layers)
        self._reference = self._logits(
            "exact outputs", [], lambda batch: self._simulation.run(batch, exact)
        )

    def __len__(self) -> int:
        return len(self._labels)

    def measure(self, encodings: Encodings) -> Measured:
        """Compare a variant with the FP32 network."""
        simulation = self._simulation.with_kept_layers(encodings.keep)
        stored = quantized_parameters(simulation.topology, encodings)
        logits = self._logits(
            "outputs", encodings.keep, lambda batch: simulation.run(batch, stored, encodings)
        )
        tally = Tally()
        order = np.arange(len(self._labels))
        tally.add(logits, self._labels, order, self._reference, None)
        return Measured(tally, *_expected(self._reference, logits, self._labels))

    def _logits(self, kind: str, kept: Sequence[str], run: Any) -> NDArray[np.float32]:
        import torch

        output = self._simulation.topology.output

        def compute() -> tuple[dict[str, NDArray[Any]], str]:
            with torch.no_grad():
                found = [
                    as_classes(run(batch)[output].numpy())
                    for part in self._images
                    for batch in batches(part, _BATCH)
                ]
            return {"logits": np.concatenate(found)}, ""

        return self._work.part(kind, [list(kept)], compute)[0]["logits"]


def _expected(
    reference: NDArray[np.float32], logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Expected losses, gains and flips among n images, from the n x n pairs of image and error."""
    before = reference.argmax(axis=1)
    correct_before = before == labels
    losses = gains = flips = 0
    for error in logits - reference:
        after = (reference + error).argmax(axis=1)
        correct_after = after == labels
        losses += int((correct_before & ~correct_after).sum())
        gains += int((correct_after & ~correct_before).sum())
        flips += int((after != before).sum())
    n = len(labels)
    return losses / n, gains / n, flips / n
