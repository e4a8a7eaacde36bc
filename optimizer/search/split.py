"""The images that the search looks at: none that calibrated, and none that will judge.

A layer kept because it fixes the calibration images themselves would be kept for nothing, and a
front that was chosen on the judge's images would flatter the graph it was chosen for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset, stratified_subset
from optimizer.errors import DataError
from optimizer.evaluation.paired_statistics import drop_interval, drop_intervals
from optimizer.evaluation.tally import Tally
from optimizer.precision.int8 import Encodings
from optimizer.precision.int8.encode import LEAST_IMAGES
from optimizer.precision.int8.simulation import (
    Simulation,
    batches,
    exact_parameters,
    stored_parameters,
)

__all__ = ["Budget", "Measured", "Split", "divided"]

_SEARCH_IMAGES = 512
_BATCH = 32
_HALF_AN_IMAGE = 0.5


def divided(dataset: ImageDataset, calibration: int) -> tuple[ImageDataset, ...]:
    """The images to calibrate with, and up to 512 others for the search; stratified both.

    Which they are depends on the labels: divide what was opened, before `check_fits` maps labels to
    outputs, so that everyone who asks gets the same images.

    Args:
        dataset: Labelled images, as they were opened.
        calibration: How many calibrate; at most half of them.

    Raises:
        DataError: Too few to calibrate.
    """
    count = min(calibration, len(dataset) // 2)
    if count < LEAST_IMAGES:
        raise DataError(
            f"{len(dataset)} images are too few to calibrate and to search on",
            hint=f"at least {2 * LEAST_IMAGES}, better 1,000: --calib",
        )
    chosen = stratified_subset(dataset.labels, count)
    rest = dataset.select(np.setdiff1d(np.arange(len(dataset)), chosen))
    searched = stratified_subset(rest.labels, min(_SEARCH_IMAGES, len(rest)))
    return dataset.select(chosen), rest.select(searched)


@dataclass(frozen=True)
class Measured:
    """How a variant did on the search's images.

    Flips are rare, and none among a few hundred images may be luck. So the error of each image's
    logits is also added to the FP32 logits of every other image: as many counts as pairs, which show
    what the noise does to narrow decisions before an image happens to flip. (It takes the error to
    be independent of the image.)

    Attributes:
        tally: The counts as they were.
        losses, gains, flips: Expected counts among as many images, from all pairs.
    """

    tally: Tally
    losses: float
    gains: float
    flips: float

    @property
    def drop_upper_pp(self) -> float:
        """Upper end of the paired 95 % interval of the drop, percentage points.

        By the counted or the expected losses, whichever are more, and the gains that are fewer.
        """
        losses = max(self.tally.losses, self.losses)
        gains = min(self.tally.gains, self.gains)
        return float(100 * drop_intervals(losses, gains, self.tally.n)[1])

    @property
    def db(self) -> float:
        """Signal to noise of the logits; infinite without noise."""
        db = self.tally.noise.db
        return float("inf") if db is None else db


@dataclass(frozen=True)
class Budget:
    """Largest loss of top-1, percentage points, that images must rule out.

    The upper end of the paired interval has to lie below it, as it will for the judge. On images
    that the network knows by heart every flip is a loss, and the bound is one of the flips. Where
    even no loss at all on so few images could not rule the drop out, no image may change its class
    instead, and less than half of one may be expected to.
    """

    max_drop_pp: float

    def holds(self, measured: Measured) -> bool:
        """Whether these images speak for the graph."""
        if 100 * drop_interval(0, 0, measured.tally.n)[1] >= self.max_drop_pp:
            return measured.tally.flips == 0 and measured.flips < _HALF_AN_IMAGE
        return measured.drop_upper_pp < self.max_drop_pp


class Split:
    """Images with the FP32 network's answers.

    Args:
        simulation: The graph.
        base: Encodings whose equalization the exact network has, which changes no answer.
        images: As the graph takes them.
        labels: N int64.
    """

    def __init__(
        self,
        simulation: Simulation,
        base: Encodings,
        images: Iterable[NDArray[Any]],
        labels: NDArray[np.int64],
    ) -> None:
        self._simulation = simulation
        self._images = list(images)
        self._labels = labels
        exact = exact_parameters(simulation.topology, base.layers)
        self._reference = self._logits(lambda batch: simulation.run(batch, exact))

    def __len__(self) -> int:
        return len(self._labels)

    def measure(self, encodings: Encodings) -> Measured:
        """Hold a variant against the FP32 network."""
        simulation = self._simulation.keeping(encodings.keep)
        stored = stored_parameters(simulation.topology, encodings)
        logits = self._logits(lambda batch: simulation.run(batch, stored, encodings))
        tally = Tally()
        order = np.arange(len(self._labels))
        tally.add(logits, self._labels, order, self._reference, None)
        return Measured(tally, *_expected(self._reference, logits, self._labels))

    def _logits(self, run: Any) -> NDArray[np.float32]:
        import torch

        output = self._simulation.topology.output
        with torch.no_grad():
            return np.concatenate(
                [
                    run(batch)[output].numpy()
                    for part in self._images
                    for batch in batches(part, _BATCH)
                ]
            )


def _expected(
    reference: NDArray[np.float32], logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Losses, gains and flips among n images, from the n x n pairs of an image and an error."""
    before = reference.argmax(axis=1)
    right = before == labels
    losses = gains = flips = 0
    for error in logits - reference:
        after = (reference + error).argmax(axis=1)
        still = after == labels
        losses += int((right & ~still).sum())
        gains += int((still & ~right).sum())
        flips += int((after != before).sum())
    n = len(labels)
    return losses / n, gains / n, flips / n
