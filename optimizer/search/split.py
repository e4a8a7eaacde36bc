"""The images that the search looks at: none that calibrated, and none that will judge.

A layer kept because it mends the calibration images themselves would be kept for nothing, and a
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
from optimizer.evaluation.statistics import Paired, drop_interval
from optimizer.evaluation.tally import Tally
from optimizer.precision.int8 import Encodings
from optimizer.precision.int8.encode import LEAST_IMAGES
from optimizer.precision.int8.simulation import (
    Simulation,
    batches,
    exact_parameters,
    stored_parameters,
)

__all__ = ["Budget", "Split", "divided"]

_SEARCH_IMAGES = 512
_BATCH = 32


def divided(dataset: ImageDataset, calibration: int, seed: int = 0) -> tuple[ImageDataset, ...]:
    """The images to calibrate with, and up to 512 others for the search; stratified both.

    Args:
        dataset: Labelled images.
        calibration: How many calibrate; at most half of them.
        seed: Decides which.

    Raises:
        DataError: Too few to calibrate.
    """
    count = min(calibration, len(dataset) // 2)
    if count < LEAST_IMAGES:
        raise DataError(
            f"{len(dataset)} images are too few to calibrate and to search on",
            mend=f"at least {2 * LEAST_IMAGES}, better 1,000: --calib",
        )
    chosen = stratified_subset(dataset.labels, count, seed)
    rest = dataset.select(np.setdiff1d(np.arange(len(dataset)), chosen))
    searched = stratified_subset(rest.labels, min(_SEARCH_IMAGES, len(rest)), seed)
    return dataset.select(chosen), rest.select(searched)


@dataclass(frozen=True)
class Budget:
    """Largest loss of top-1, percentage points, that images must rule out.

    The upper end of the paired 95 % interval has to lie below it, as it will for the judge. On
    images that the network knows by heart every flip is a loss, and the bound is one of the flips.
    Where even no loss at all on so few images could not rule the drop out, no image may change its
    class instead.
    """

    max_drop_pp: float

    def holds(self, tally: Tally) -> bool:
        """Whether these images speak for the graph."""
        if 100 * drop_interval(0, 0, tally.n)[1] >= self.max_drop_pp:
            return tally.flips == 0
        return upper_pp(tally.paired) < self.max_drop_pp


def upper_pp(paired: Paired) -> float:
    """Upper end of the interval of the drop, percentage points."""
    return paired.interval_pp[1]


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

    def measure(self, encodings: Encodings) -> Tally:
        """Hold a variant against the FP32 network."""
        simulation = self._simulation.keeping(encodings.keep)
        stored = stored_parameters(simulation.topology, encodings)
        logits = self._logits(lambda batch: simulation.run(batch, stored, encodings))
        tally = Tally()
        order = np.arange(len(self._labels))
        tally.add(logits, self._labels, order, self._reference, None)
        return tally

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
