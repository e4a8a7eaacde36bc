"""The walk from all-INT8 towards high precision, until the accuracy is inside the budget.

At each step the layer is kept that removes most noise from the output for the time it adds. What a
layer removes depends on what is kept already (two readers of one tensor gain only together, others
share a loss), so estimates from the step before are measured again, best first, until the best one
is fresh.

Source: lazy evaluation of Minoux 1978, "Accelerated greedy algorithms for maximizing submodular
set functions". Noise is no submodular function, so it is a heuristic here: `_FRESH` bounds the work
of a step, and in the end kept layers are given back that others have made superfluous. Superfluous
means that the budget holds *and* the signal to noise stays: a few hundred images may show no flip at
16 dB as at 41, and the judge has others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optimizer.precision.int8 import Encodings
from optimizer.search.cost import Costs
from optimizer.search.sensitivity import Sensitivity, noise_power
from optimizer.search.split import Budget, Measured, Split
from optimizer.search.variants import Kept, Variants

__all__ = ["Point", "Walk"]

_FRESH = 4
_SLACK_DB = 0.5
_LEAST_MS = 1e-9
"""Layers that an engine computes in high precision anyway cost nothing to keep."""


@dataclass(frozen=True)
class Point:
    """One graph on the way.

    Attributes:
        kept: Layers in high precision.
        encodings: Its encodings, with the biases corrected for it.
        measured: How it did on the search's images.
        predicted_ms: Time of one image.
        inside: Within the budget.
    """

    kept: Kept
    encodings: Encodings
    measured: Measured
    predicted_ms: float
    inside: bool


class Walk:
    """A search for the fastest graph inside a budget.

    Args:
        variants: The graph.
        split: Images of the search's own.
        budget: What is to be kept.
        costs: What keeping a layer costs.

    Attributes:
        front: The graphs that were looked at, in order.
    """

    def __init__(self, variants: Variants, split: Split, budget: Budget, costs: Costs) -> None:
        self._variants = variants
        self._split = split
        self._budget = budget
        self._costs = costs
        self.front: list[Point] = []

    def start(self) -> Point:
        """Look at the graph with as many layers in INT8 as there may be."""
        return self._look(self._variants.start)

    def run(
        self,
        sensitivities: Sequence[Sensitivity],
        advance: Callable[[Point], None] = lambda _: None,
    ) -> Point:
        """Keep layers until the budget holds, then give back those it does not need.

        Args:
            sensitivities: First estimates.
            advance: Told of every graph.

        Returns:
            The fastest graph inside the budget. With every layer kept it is the FP32 network, so
            there always is one.
        """
        kept = self._variants.start
        estimates = {one.layer: one.removed for one in sensitivities}
        point = self.front[0]
        while not point.inside and estimates:
            layer = self._next(kept, estimates)
            del estimates[layer]
            kept = kept | {layer}
            point = self._look(kept)
            advance(point)
        return self._pruned(point, advance)

    def _next(self, kept: Kept, estimates: dict[str, float]) -> str:
        """The layer that removes most noise for its time; estimates are brought up to date."""
        predict = self._costs.predict
        before = predict(kept)

        def worth(layer: str) -> float:
            added = max(predict(kept | {layer}) - before, _LEAST_MS)
            removed = estimates[layer]
            # What removes nothing is the worse the more it costs.
            return removed / added if removed > 0 else removed * added

        if kept == self._variants.start:
            return max(estimates, key=worth)  # that is what was measured
        fresh: list[str] = []
        (now,) = self._variants.sqnr([kept])
        while (best := max(estimates, key=worth)) not in fresh:
            if len(fresh) == _FRESH:
                return max(fresh, key=worth)
            (then,) = self._variants.sqnr([kept | {best}])
            estimates[best] = noise_power(now) - noise_power(then)
            fresh.append(best)
        return best

    def _pruned(self, point: Point, advance: Callable[[Point], None]) -> Point:
        """Give back superfluous layers, the most expensive first."""
        kept = point.kept
        own = kept - self._variants.start
        if len(own) < 2:
            return point
        by_cost = sorted(own, key=lambda name: self._costs.predict(kept - {name}))
        for layer in by_cost:
            fewer = point.kept - {layer}
            if any(fewer == seen.kept for seen in self.front):
                continue  # looked at on the way
            tried = self._look(fewer)
            advance(tried)
            if tried.inside and tried.measured.db >= point.measured.db - _SLACK_DB:
                point = tried
        return point

    def _look(self, kept: Kept) -> Point:
        encodings = self._variants.encodings(kept)
        measured = self._split.measure(encodings)
        inside = self._budget.holds(measured)
        point = Point(kept, encodings, measured, self._costs.predict(kept), inside)
        self.front.append(point)
        return point
