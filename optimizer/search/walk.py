"""Greedy search from all-INT8 towards high precision, until the accuracy is within the budget.

Each step keeps the layer that removes the most output noise per added time. How much a layer removes
depends on the layers already kept (two readers of one tensor may help only together, or may remove
the same noise), so estimates from the previous step are measured again, best first, until the best
one is up to date.

Source: lazy evaluation of Minoux 1978, "Accelerated greedy algorithms for maximizing submodular
set functions". Noise is not a submodular function, so this is a heuristic here: `_MAX_REMEASURED`
bounds the work of a step, and at the end kept layers that others have made superfluous go back to
INT8. A layer is superfluous if without it the budget holds *and* the SQNR does not drop: a few
hundred images may show no flip at 16 dB just as at 41 dB, and the final validation has other images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from optimizer.precision.int8 import Encodings
from optimizer.search.cost import Costs
from optimizer.search.sensitivity import Sensitivity, noise_power
from optimizer.search.variants import Kept, Variants

__all__ = ["Accuracy", "Counts", "Limits", "Point", "SearchImages", "Walk"]

_MAX_REMEASURED = 4
_SLACK_DB = 0.5
_LEAST_MS = 1e-9
"""Lower bound of the cost, for layers that an engine computes in high precision anyway."""


class Counts(NamedTuple):
    """Predictions that differ from those of the FP32 network.

    Attributes:
        changed: All of them.
        losses: Those that the FP32 network has right; of a detector, lost detections.
        gains: Those that the variant has right; of a detector, new detections.
    """

    changed: int
    losses: int
    gains: int


class Accuracy(Protocol):
    """What is measured of a variant on the search images."""

    @property
    def counts(self) -> Counts:
        """Predictions that differ from those of the FP32 network."""

    @property
    def expected_changes(self) -> float:
        """The same as noise and decision margins let expect it."""

    @property
    def db(self) -> float:
        """SQNR of the output, dB; infinite without noise."""

    @property
    def drop_upper_pp(self) -> float:
        """Upper end of the interval of the drop, percentage points."""

    @property
    def words(self) -> str:
        """What changed, for a sentence."""


class SearchImages(Protocol):
    """The images of a search."""

    def measure(self, encodings: Encodings) -> Accuracy:
        """Compare a variant with the FP32 network."""


class Limits(Protocol):
    """The accuracy budget of a task; it knows what is measured of its variants."""

    def holds(self, measured: Any) -> bool:
        """Whether the graph is within the budget on these images."""


@dataclass(frozen=True)
class Point:
    """One evaluated graph.

    Attributes:
        kept: Layers in high precision.
        encodings: Its encodings, with corrected biases.
        measured: Its accuracy on the search images.
        predicted_ms: Predicted time per image, milliseconds.
        inside: Whether it is within the budget.
    """

    kept: Kept
    encodings: Encodings
    measured: Accuracy
    predicted_ms: float
    inside: bool


class Walk:
    """A search for the fastest graph within a budget.

    Args:
        variants: The graph.
        split: The search images.
        budget: The accuracy budget.
        costs: Layer costs.

    Attributes:
        front: The evaluated graphs, in order.
    """

    def __init__(
        self, variants: Variants, split: SearchImages, budget: Limits, costs: Costs
    ) -> None:
        self._variants = variants
        self._split = split
        self._budget = budget
        self._costs = costs
        self.front: list[Point] = []

    def start(self) -> Point:
        """Evaluate the graph with as many layers in INT8 as possible."""
        return self._evaluate(self._variants.start)

    def run(
        self,
        sensitivities: Sequence[Sensitivity],
        advance: Callable[[Point], None] = lambda _: None,
    ) -> Point:
        """Keep layers until the budget holds, then drop those that are not needed.

        Args:
            sensitivities: Initial estimates.
            advance: Called with every evaluated graph.

        Returns:
            The fastest graph within the budget. There always is one: with every layer kept it is
            the FP32 network.
        """
        kept = self._variants.start
        estimates = {entry.layer: entry.removed for entry in sensitivities}
        point = self.front[0]
        while not point.inside and estimates:
            layer = self._next(kept, estimates)
            del estimates[layer]
            kept = kept | {layer}
            point = self._evaluate(kept)
            advance(point)
        return self._pruned(point, advance)

    def _next(self, kept: Kept, estimates: dict[str, float]) -> str:
        """The layer that removes the most noise per added time; updates the estimates."""
        predict = self._costs.predict
        before = predict(kept)

        def worth(layer: str) -> float:
            added = max(predict(kept | {layer}) - before, _LEAST_MS)
            removed = estimates[layer]
            # Among layers that remove nothing, cheaper is better.
            return removed / added if removed > 0 else removed * added

        if kept == self._variants.start:
            return max(estimates, key=worth)  # the estimates are for this graph
        remeasured: list[str] = []
        (current,) = self._variants.sqnr([kept])
        while (best := max(estimates, key=worth)) not in remeasured:
            if len(remeasured) == _MAX_REMEASURED:
                return max(remeasured, key=worth)
            (kept_too,) = self._variants.sqnr([kept | {best}])
            estimates[best] = noise_power(current) - noise_power(kept_too)
            remeasured.append(best)
        return best

    def _pruned(self, point: Point, advance: Callable[[Point], None]) -> Point:
        """Return superfluous layers to INT8, the most expensive first."""
        kept = point.kept
        added = kept - self._variants.start
        if len(added) < 2:
            return point
        # In the order of the graph where they cost the same: a set's order differs between processes.
        in_order = self._variants.in_order(added)
        by_cost = sorted(in_order, key=lambda name: self._costs.predict(kept - {name}))
        for layer in by_cost:
            fewer = point.kept - {layer}
            if any(fewer == evaluated.kept for evaluated in self.front):
                continue
            candidate = self._evaluate(fewer)
            advance(candidate)
            if candidate.inside and candidate.measured.db >= point.measured.db - _SLACK_DB:
                point = candidate
        return point

    def _evaluate(self, kept: Kept) -> Point:
        encodings = self._variants.encodings(kept)
        measured = self._split.measure(encodings)
        inside = self._budget.holds(measured)
        point = Point(kept, encodings, measured, self._costs.predict(kept), inside)
        self.front.append(point)
        return point
