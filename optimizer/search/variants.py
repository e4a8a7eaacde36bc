"""Variants of one INT8 graph: same ranges and scales, different layers in high precision.

What is computed of them is stored until the search is done, so a search that was killed goes on after the
last variants that it had measured. Variants that are computed together are stored together, because
their last bits may depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.artifacts import UnfinishedWork
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
        work: What an interrupted search has stored; by default nothing is stored.

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
        work: UnfinishedWork | None = None,
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
        self.work = work or UnfinishedWork(None, None)
        self.base = self._stored_encodings(
            "base", lambda: compute_encodings(model, statistics, rules, graph_sha256, options)
        )
        self.start: Kept = frozenset(self.base.keep)
        self.layers = [str(node.name) for node in self.topology.layers()]
        self.simulation = Simulation(self.topology, rules)
        self._sample: NDArray[Any] = statistics.simulation_sample

    def in_order(self, kept: Collection[str]) -> list[str]:
        """The kept layers in graph order."""
        return [name for name in self.layers if name in kept]

    def encodings(self, kept: Kept) -> Encodings:
        """Encodings of one variant, with biases corrected on the simulation sample."""

        def correct() -> Encodings:
            (corrected,) = correct_biases(self.simulation, [self._variant(kept)], self._sample)
            return corrected.encodings

        return self._stored_encodings(sorted(kept), correct)

    def sqnr(self, variants: Sequence[Kept]) -> list[float]:
        """SQNR of the output, dB, on a part of the sample, on which biases are corrected."""
        values: list[float] = []
        for start in range(0, len(variants), AT_ONCE):
            group = variants[start : start + AT_ONCE]
            arrays, _ = self.work.part("sqnr", list(map(sorted, group)), partial(self._sqnr, group))
            values += arrays["sqnr"].tolist()
        return values

    def _sqnr(self, group: Sequence[Kept]) -> tuple[dict[str, NDArray[Any]], str]:
        encodings, images = list(map(self._variant, group)), self._sample[:_SQNR_IMAGES]
        corrected = correct_biases(self.simulation, encodings, images)
        return {"sqnr": np.array([result.sqnr for result in corrected], np.float64)}, ""

    def _stored_encodings(self, name: Any, compute: Callable[[], Encodings]) -> Encodings:
        _, text = self.work.part("encodings", [name], lambda: ({}, compute().model_dump_json()))
        return Encodings.model_validate_json(text)

    def _variant(self, kept: Kept) -> Encodings:
        return with_kept_layers(self.base, kept, self.topology, self.rules)
