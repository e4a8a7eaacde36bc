"""What a search asks of a task: how variants are compared on its images, and its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from optimizer.data import ImageDataset, Preprocessing, match_classes
from optimizer.graphs.facts import GraphFacts
from optimizer.models import DetectorSpec
from optimizer.results import Gates
from optimizer.search.detection_split import DetectionBudget, DetectionSplit
from optimizer.search.split import Budget, Split
from optimizer.search.variants import Variants
from optimizer.search.walk import Limits, SearchImages
from optimizer.tasks import Classification, Detection

__all__ = ["SearchTask", "search_task"]


class SearchTask(Protocol):
    """One task in a search."""

    @property
    def budget(self) -> Limits:
        """The accuracy budget."""

    @property
    def settings(self) -> dict[str, Any]:
        """The budget as it goes into keys of artifacts."""

    def matched(self, dataset: ImageDataset) -> ImageDataset:
        """The images with labels that are indices of the network's classes."""

    def images(
        self, variants: Variants, batches: Sequence[NDArray[Any]], dataset: ImageDataset
    ) -> SearchImages:
        """The search images, with what the FP32 network gives for them."""


@dataclass(frozen=True)
class _ClassifierSearch:
    facts: GraphFacts
    gates: Gates

    @property
    def budget(self) -> Budget:
        return Budget(self.gates.max_drop_pp)

    @property
    def settings(self) -> dict[str, Any]:
        return {"max_drop_pp": self.gates.max_drop_pp}

    def matched(self, dataset: ImageDataset) -> ImageDataset:
        return match_classes(dataset, max(2, self.facts.output_shape[1] or 0), self.facts.classes)

    def images(
        self, variants: Variants, batches: Sequence[NDArray[Any]], dataset: ImageDataset
    ) -> Split:
        return Split(variants, batches, dataset.labels)


@dataclass(frozen=True)
class _DetectorSearch:
    facts: GraphFacts
    gates: Gates
    spec: DetectorSpec
    task: Detection

    @property
    def budget(self) -> DetectionBudget:
        return DetectionBudget(self.task, self.gates)

    @property
    def settings(self) -> dict[str, Any]:
        return self.gates.model_dump()

    def matched(self, dataset: ImageDataset) -> ImageDataset:
        return self.task.match(dataset, self.spec.num_classes, self.facts.classes)

    def images(
        self, variants: Variants, batches: Sequence[NDArray[Any]], dataset: ImageDataset
    ) -> DetectionSplit:
        return DetectionSplit(variants, batches, dataset, self.task)


def search_task(facts: GraphFacts, preprocessing: Preprocessing, gates: Gates) -> SearchTask:
    """The search of a graph's task.

    Raises:
        UsageError: A limit is set that the task has no measure for.
    """
    if facts.detector is None:
        Classification().for_gates(gates)
        return _ClassifierSearch(facts, gates)
    spec = DetectorSpec.from_dict(facts.detector)
    return _DetectorSearch(facts, gates, spec, Detection(spec, preprocessing).for_gates(gates))
