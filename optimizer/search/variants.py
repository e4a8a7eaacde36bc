"""Variants of one INT8 graph: the same ranges and scales, other layers in high precision."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import DataError, GraphError, UsageError
from optimizer.graphs.topology import analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import Encodings, Statistics, compute_encodings
from optimizer.precision.int8.correction import correct_biases
from optimizer.precision.int8.kept import keeping
from optimizer.precision.int8.simulation import Simulation
from optimizer.targets.rules import TargetRules

__all__ = ["AT_ONCE", "Kept", "Variants"]

Kept = frozenset[str]
"""Names of the weighted layers in high precision."""
_FEW_IMAGES = 64
AT_ONCE = 6
"""Variants computed side by side: each holds a block's tensors of all the images."""


class Variants:
    """Encodings of one graph that differ in the layers they keep, and how good they are.

    Args:
        model: The FP32 graph; it is not changed.
        statistics: Of this graph, with a sample of the images.
        rules: The target's rules.
        graph_sha256: Digest of the graph's file.
        options: Passes that compute the encodings; what they keep, every variant keeps.

    Raises:
        UsageError: Options without a correction of the biases on the network.
        GraphError: The graph cannot be simulated.
        DataError: The statistics carry no sample.
    """

    def __init__(
        self,
        model: ir.Model,
        statistics: Statistics,
        rules: TargetRules,
        graph_sha256: str,
        options: EncodingOptions,
    ) -> None:
        self.topology = analyse(model)
        if options.bias_correction != "network":
            raise UsageError(
                f"a search corrects biases on the network, not by {options.bias_correction!r}",
                hint="--bias-correction network",
            )
        if not Simulation.simulates(self.topology):
            raise GraphError("the graph has operations that cannot be simulated")
        if not len(statistics.sample):
            raise DataError("the statistics carry no sample of images", hint="calibrate again")
        self.rules = rules
        self.base = compute_encodings(model, statistics, rules, graph_sha256, options)
        self.start: Kept = frozenset(self.base.keep)
        self.layers = [str(node.name) for node in self.topology.layers()]
        self.simulation = Simulation(self.topology, rules)
        self._sample: NDArray[Any] = statistics.at_once

    def in_order(self, kept: Collection[str]) -> list[str]:
        """Layers in the order of the graph."""
        return [name for name in self.layers if name in kept]

    def encodings(self, kept: Kept) -> Encodings:
        """Encodings of one variant, its biases corrected on the whole sample."""
        (corrected,) = correct_biases(self.simulation, [self._variant(kept)], self._sample)
        return corrected.encodings

    def sqnr(self, variants: Sequence[Kept]) -> list[float]:
        """Signal to noise at the output on a part of the sample, biases corrected on it; dB."""
        few = self._sample[:_FEW_IMAGES]
        found: list[float] = []
        for start in range(0, len(variants), AT_ONCE):
            some = [self._variant(kept) for kept in variants[start : start + AT_ONCE]]
            found += [one.sqnr for one in correct_biases(self.simulation, some, few)]
        return found

    def _variant(self, kept: Kept) -> Encodings:
        return keeping(self.base, kept, self.topology, self.rules)
