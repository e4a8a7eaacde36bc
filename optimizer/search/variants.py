"""Variants of one INT8 graph: same ranges and scales, different layers in high precision."""

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
from optimizer.precision.int8.kept_layers import with_kept_layers
from optimizer.precision.int8.simulation import Simulation
from optimizer.targets.rules import TargetRules

__all__ = ["AT_ONCE", "Kept", "Variants"]

Kept = frozenset[str]
"""Names of the weighted layers in high precision."""
_SQNR_IMAGES = 64
AT_ONCE = 6
"""Variants computed in one pass: each keeps a block's tensors of all images in memory."""


class Variants:
    """Encodings of one graph with different kept layers, and their SQNR.

    Args:
        model: The FP32 graph; not modified.
        statistics: Statistics of this graph, with sample images.
        rules: The target's rules.
        graph_sha256: Digest of the graph's file.
        options: Passes that compute the encodings; every variant keeps the layers in ``keep``.

    Attributes:
        start: Layers that every variant keeps.
        layers: All weighted layers, in graph order.

    Raises:
        UsageError: ``bias_correction`` is not ``network``.
        GraphError: The graph cannot be simulated.
        DataError: The statistics contain no sample images.
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
                f"a search needs bias correction on the network, not {options.bias_correction!r}",
                hint="use --bias-correction network",
            )
        if unsupported := Simulation.unsupported(self.topology):
            node = unsupported[0]
            raise GraphError(
                f"{node.name} ({node.op_type}) cannot be simulated, which a search needs",
                hint="use --precision int8, with --keep for layers that should stay out of it",
            )
        if not len(statistics.sample):
            raise DataError("the statistics contain no sample images", hint="calibrate again")
        self.rules = rules
        self.base = compute_encodings(model, statistics, rules, graph_sha256, options)
        self.start: Kept = frozenset(self.base.keep)
        self.layers = [str(node.name) for node in self.topology.layers()]
        self.simulation = Simulation(self.topology, rules)
        self._sample: NDArray[Any] = statistics.simulation_sample

    def in_order(self, kept: Collection[str]) -> list[str]:
        """The kept layers in graph order."""
        return [name for name in self.layers if name in kept]

    def encodings(self, kept: Kept) -> Encodings:
        """Encodings of one variant, with biases corrected on the simulation sample."""
        (corrected,) = correct_biases(self.simulation, [self._variant(kept)], self._sample)
        return corrected.encodings

    def sqnr(self, variants: Sequence[Kept]) -> list[float]:
        """SQNR of the output, dB, on a part of the sample, on which biases are corrected."""
        images = self._sample[:_SQNR_IMAGES]
        values: list[float] = []
        for start in range(0, len(variants), AT_ONCE):
            group = [self._variant(kept) for kept in variants[start : start + AT_ONCE]]
            values += [result.sqnr for result in correct_biases(self.simulation, group, images)]
        return values

    def _variant(self, kept: Kept) -> Encodings:
        return with_kept_layers(self.base, kept, self.topology, self.rules)
