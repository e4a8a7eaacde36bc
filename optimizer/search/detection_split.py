"""The search images of a detector: AP, and detections that are lost or new.

The budget is that of the validation: the upper end of the paired interval of the drop in AP, and the
share of lost detections where it is limited. AP hides scores that shrink a little, lost detections
do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import ImageDataset
from optimizer.precision.int8 import Encodings
from optimizer.precision.int8.simulation import (
    batches,
    exact_parameters,
    quantized_parameters,
)
from optimizer.results import Gates
from optimizer.search.variants import Variants
from optimizer.search.walk import Counts
from optimizer.tasks import Detection
from optimizer.tasks.detection import BatchDetections
from optimizer.tasks.detection_tally import DetectionTally

__all__ = ["DetectionBudget", "DetectionSplit", "MeasuredDetections"]

_REFERENCE, _VARIANT = "reference", "variant"


@dataclass(frozen=True)
class MeasuredDetections:
    """Accuracy of a variant on the search images; see `optimizer.search.walk.Accuracy`.

    Attributes:
        tally: Detections, and their changes from the FP32 network.
    """

    tally: DetectionTally

    @property
    def drop_upper_pp(self) -> float:
        """Upper end of the paired interval of the drop in AP, percentage points."""
        return 100 * self.tally.interval[1]

    @property
    def db(self) -> float:
        """SQNR of the class logits, dB; infinite without noise."""
        db = self.tally.scores.db
        return float("inf") if db is None else db

    @property
    def counts(self) -> Counts:
        """Lost and new detections."""
        changes = self.tally.changes
        return Counts(changes.lost + changes.new, changes.lost, changes.new)

    @property
    def expected_changes(self) -> float:
        """The counted ones: an image has several detections, so few images show none by chance."""
        return self.counts.changed

    @property
    def words(self) -> str:
        """What changed, for a sentence."""
        changes = self.tally.changes
        return (
            f"{changes.lost} of {changes.before} detections on {self.tally.n} search images are lost "
            f"and {changes.new} are new"
        )


@dataclass(frozen=True)
class DetectionBudget:
    """The limits of the validation, judged on the search images.

    Attributes:
        task: Judges tallies.
        gates: The limits.
    """

    task: Detection
    gates: Gates

    def holds(self, measured: MeasuredDetections) -> bool:
        """Whether the images rule out a loss beyond the limits."""
        return self.task.verdict(measured.tally, self.gates, labels_informative=True) == "pass"


class DetectionSplit:
    """Search images with the FP32 network's detections.

    Args:
        variants: The graph. The equalization of its encodings is applied to the exact network too,
            which does not change the output.
        images: Batches in the graph's input format, in the order of the dataset.
        dataset: The images with their objects, in the network's classes.
        task: Reads the outputs.
    """

    def __init__(
        self,
        variants: Variants,
        images: Iterable[NDArray[Any]],
        dataset: ImageDataset,
        task: Detection,
    ) -> None:
        self._simulation, self._work = variants.simulation, variants.work
        self._images, self._dataset, self._task = list(images), dataset, task
        exact = exact_parameters(variants.topology, variants.base.layers)
        self._reference = self._read(
            "exact outputs", [], lambda batch: self._simulation.run(batch, exact)
        )

    def __len__(self) -> int:
        return len(self._dataset)

    def measure(self, encodings: Encodings) -> MeasuredDetections:
        """Compare a variant with the FP32 network."""
        simulation = self._simulation.with_kept_layers(encodings.keep)
        stored = quantized_parameters(simulation.topology, encodings)
        found = self._read(
            "outputs", encodings.keep, lambda batch: simulation.run(batch, stored, encodings)
        )
        tallies = {_REFERENCE: self._tally(self._reference), _VARIANT: self._tally(found)}
        self._task.finish(tallies, {_VARIANT: _REFERENCE}, self._dataset)
        return MeasuredDetections(tallies[_VARIANT])

    def _tally(self, found: BatchDetections) -> DetectionTally:
        tally = self._task.tally()
        indices = np.arange(len(self._dataset))
        self._task.add(tally, found, self._dataset, indices, (self._reference, None))
        return tally

    def _read(self, kind: str, kept: Sequence[str], run: Any) -> BatchDetections:
        import torch

        output = self._simulation.topology.output

        def compute() -> tuple[dict[str, NDArray[Any]], str]:
            found, start = [], 0
            with torch.no_grad():
                for part in self._images:
                    for batch in batches(part, len(part)):
                        outputs = run(batch)[output].numpy()
                        indices = np.arange(start, start + len(outputs))
                        found.append(self._task.read(outputs, self._dataset, indices))
                        start += len(outputs)
            return self._task.pack(found), ""

        return self._task.unpack(self._work.part(kind, [list(kept)], compute)[0])
