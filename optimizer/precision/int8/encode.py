"""Compute encodings for one target from statistics and weights.

The steps, each of which can be disabled: equalization, ranges of the tensors, scales of the weights,
bias correction.

Ranges. No range method based only on histograms is good for all networks. Where outliers are rare
and carry no information, least squared error is 3 dB better at the output than min-max; where they
carry the class, it is 6 dB worse, because clipping errors accumulate over layers and rounding errors
do not. ``auto`` measures: it interpolates between the two methods in a few steps,
min-max^(1 - t) * MSE^t, quantizes the network at each step, corrects its biases, and compares the
outputs on part of the calibration images sampled in the statistics; the biases are then corrected on
the whole sample. The midpoint t = 0.5 is used unless another step is clearly better. The ranges come
from these same images, which favours narrow ranges, by 0.4 dB (min-max) to 1.4 dB (MSE) compared with
held-out images (two trainings of ResNet-50, three targets); on these, the midpoint was within
0.15 dB of the best step in each case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.errors import DataError
from optimizer.graphs.topology import PASS_THROUGH_OPS, Topology
from optimizer.options import EncodingOptions, EncodingPasses
from optimizer.precision.half import LARGEST
from optimizer.precision.int8.correction import correct_biases, correct_by_statistics
from optimizer.precision.int8.encodings import (
    Encodings,
    LayerEncoding,
    TensorEncoding,
    stored_scale,
)
from optimizer.precision.int8.equalization import equalization_factors
from optimizer.precision.int8.ranges import distribution, range_of
from optimizer.precision.int8.rounding import WeightGrid, scales_of
from optimizer.precision.int8.shift import shiftable
from optimizer.precision.int8.simulation import Simulation
from optimizer.precision.int8.statistics import Statistics
from optimizer.processes import release_memory
from optimizer.targets.rules import TargetRules

__all__ = ["LEAST_IMAGES", "REVISION", "compute_encodings"]

REVISION = 4
"""Incremented when the same options give different encodings, to invalidate cached ones."""


LEAST_IMAGES = 8
_STEPS = (0.0, 0.25, 0.5, 1.0)
_MIDPOINT = _STEPS.index(0.5)
_CLEARLY_BETTER_DB = 0.8
"""By how much another step must exceed the midpoint."""
_WITHOUT_SAMPLE = 0.25
_STEPS_AT_ONCE = 2
"""More would recompute the exact network less often, but each needs the memory of one network."""
_MIN_COMPARED_IMAGES = 8


def compute_encodings(
    model: ir.Model,
    statistics: Statistics,
    rules: TargetRules,
    graph_sha256: str,
    options: EncodingOptions | None = None,
) -> Encodings:
    """Compute encodings of an FP32 graph for one target.

    Args:
        model: The FP32 graph; not modified.
        statistics: Statistics of this graph.
        rules: The target's rules.
        graph_sha256: Digest of the graph's file, stored in the encodings to identify their graph.
        options: Passes to run; ``None`` for the defaults.

    Returns:
        The encodings; their ``notes`` list passes that could not run as requested, and why.

    Raises:
        DataError: The statistics come from too few images, or lack a required tensor.
        GraphError: `analyse` does not accept the graph, or a scale exceeds the target's type.
        UsageError: The graph does not have a layer to keep.
    """
    options = options or EncodingOptions()
    if statistics.images < LEAST_IMAGES:
        raise DataError(
            f"calibration on {statistics.images} images is not enough to estimate ranges",
            hint=f"use at least {LEAST_IMAGES} images, better 256 or more",
        )
    topology = Topology(model)
    options = options.model_copy(update={"keep": topology.check_layers(options.keep)})
    required = {edge.tensor for edge in topology.quantized_edges(rules)}
    missing = required - set(statistics.tensors)
    if missing:
        raise DataError(
            f"the statistics do not contain {min(missing)}",
            hint="calibrate this graph again",
        )
    release_memory()  # allocated by calibration
    return _Encoder(topology, statistics, rules, graph_sha256, options).encodings()


class _Encoder:
    """The passes and their shared data."""

    def __init__(
        self,
        topology: Topology,
        statistics: Statistics,
        rules: TargetRules,
        graph_sha256: str,
        options: EncodingOptions,
    ) -> None:
        self.topology = topology
        self.statistics = statistics
        self.rules = rules
        self.graph_sha256 = graph_sha256
        self.options = options
        quantized = {edge.tensor for edge in topology.quantized_edges(rules, options.keep)}
        self.factors = (
            equalization_factors(topology, statistics, quantized=quantized)
            if options.equalize
            else {}
        )
        may_shift = rules.shift and options.shift
        self.shifted = shiftable(topology, rules, options.keep) if may_shift else set()
        # For kept layers too, so that layers can be removed from the list in the file.
        self.distributions = {
            edge.tensor: distribution(
                statistics.tensors[edge.tensor], self.factors.get(edge.tensor)
            )
            for edge in topology.quantized_edges(rules)
        }
        self.notes = fp16_overflow_notes(statistics) if rules.high_precision == "fp16" else []
        self.simulation = self._simulation()
        self.layers = {
            str(node.name): _layer_encoding(topology, node, self.factors, rules, options)
            for node in topology.layers()
        }

    def encodings(self) -> Encodings:
        """Run the passes."""
        if self.options.method != "auto":
            return self._finalized(self._ranges(self.options.method))
        wide, narrow = self._ranges("minmax"), self._ranges("mse")
        if self.simulation is None:
            return self._finalized(_interpolated(wide, narrow, _WITHOUT_SAMPLE))
        candidates = [
            corrected
            for start in range(0, len(_STEPS), _STEPS_AT_ONCE)
            for corrected in correct_biases(
                self.simulation,
                [
                    self._encoded(_interpolated(wide, narrow, step))
                    for step in _STEPS[start : start + _STEPS_AT_ONCE]
                ],
                self._comparison_images(),
            )
        ]
        best = max(range(len(candidates)), key=lambda index: candidates[index].sqnr)
        if candidates[best].sqnr < candidates[_MIDPOINT].sqnr + _CLEARLY_BETTER_DB:
            best = _MIDPOINT
        self.notes.append(
            "auto ranges: "
            + ", ".join(
                f"{step:g} {candidate.sqnr:.1f} dB"
                for step, candidate in zip(_STEPS, candidates, strict=True)
            )
            + f"; chose {_STEPS[best]:g}"
        )
        return self._finalized(_interpolated(wide, narrow, _STEPS[best]))

    def _comparison_images(self) -> NDArray[Any]:
        """A part of the sample, to limit the cost: every step computes the network on it."""
        sample = self.statistics.simulation_sample
        return sample[: max(_MIN_COMPARED_IMAGES, len(sample) // len(_STEPS))]

    def _finalized(self, ranges: Mapping[str, float]) -> Encodings:
        encodings = self._encoded(ranges)
        if self.options.bias_correction == "none":
            return encodings
        if self.options.bias_correction == "network" and self.simulation is not None:
            (corrected,) = correct_biases(
                self.simulation, [encodings], self.statistics.simulation_sample
            )
            return corrected.encodings
        for node in self.topology.layers():
            if node.name not in self.options.keep:  # kept layers have no rounding error
                correct_by_statistics(self.topology, node, encodings, self.statistics, self.factors)
        return encodings

    def _simulation(self) -> Simulation | None:
        if self.options.bias_correction != "network" and self.options.method != "auto":
            return None
        if not len(self.statistics.sample):
            reason = "the statistics contain no sample images"
        elif unsupported := Simulation.unsupported(self.topology):
            first, more = unsupported[0], len(unsupported) - 1
            reason = f"{first.name} ({first.op_type})" + (f" and {more} more" if more else "")
            reason = f"warning: {reason} cannot be simulated, so INT8 will be less accurate"
        else:
            return Simulation(self.topology, self.rules, self.options.keep)
        self.notes.append(f"{reason}: ranges and biases are computed from histograms only")
        return None

    def _levels(self, tensor: str) -> int:
        unsigned = self.topology.after_relu(tensor) and self.rules.relu_dtype == "u8"
        return 255 if unsigned or tensor in self.shifted else 127

    def _ranges(self, method: str) -> dict[str, float]:
        """The range of each tensor: its largest absolute value that is not clipped."""
        return {
            name: range_of(dist, self._levels(name), method)
            for name, dist in self.distributions.items()
        }

    def _encoded(self, ranges: Mapping[str, float]) -> Encodings:
        """Encodings without bias correction."""
        tensors = self._tensors(ranges)
        return Encodings(
            target=self.rules.name,
            weight_max=self.rules.weight_max,
            pairs=self.rules.pairs,
            graph_sha256=self.graph_sha256,
            options=self.options.of_kind(EncodingPasses).model_dump(mode="json"),
            notes=self.notes,
            keep=list(self.options.keep),
            tensors=tensors,
            layers={name: self._layer_for_bias(name, tensors) for name in self.layers},
        )

    def _layer_for_bias(self, name: str, tensors: Mapping[str, TensorEncoding]) -> LayerEncoding:
        layer = self.layers[name]
        if self.rules.bias != "int32":
            return layer.model_copy()
        source = self.topology.data_inputs(self.topology.nodes[name])[0]
        return layer.with_bias_in_range(tensors[source].scale)

    def _tensors(self, ranges: Mapping[str, float]) -> dict[str, TensorEncoding]:
        encodings: dict[str, TensorEncoding] = {}
        for name in ranges:
            producer = self.topology.producer(name)
            source = self.topology.data_inputs(producer)[0] if producer is not None else ""
            if (
                producer is not None
                and producer.op_type in PASS_THROUGH_OPS
                and source in encodings
            ):
                encodings[name] = encodings[source]
                continue
            unsigned = self.topology.after_relu(name) and self.rules.relu_dtype == "u8"
            dtype = "u8" if unsigned else self.rules.signed_dtype
            encodings[name] = TensorEncoding(
                scale=stored_scale(ranges[name] / self._levels(name), self.rules),
                zero_point=128 if dtype == "u8" and not unsigned else 0,
                dtype=dtype,
                shifted=name in self.shifted,
            )
        return encodings


def fp16_overflow_notes(statistics: Statistics) -> list[str]:
    """Notes on tensors that overflow the FP16 around INT8 and FP8 layers."""
    limit = LARGEST[ir.DataType.FLOAT16]
    return [
        f"{name} reaches {largest:,.0f} on the calibration images and overflows the FP16 around "
        "quantized layers: use --high-precision fp32"
        for name, largest in statistics.largest.items()
        if largest > limit
    ]


def _interpolated(
    wide: Mapping[str, float], narrow: Mapping[str, float], step: float
) -> dict[str, float]:
    return {name: wide[name] ** (1.0 - step) * narrow[name] ** step for name in wide}


def _layer_encoding(
    topology: Topology,
    node: ir.Node,
    factors: Mapping[str, NDArray[np.float32]],
    rules: TargetRules,
    options: EncodingOptions,
) -> LayerEncoding:
    input_factor = factors.get(topology.data_inputs(node)[0])
    output_factor = factors.get(str(node.outputs[0].name))
    bias = topology.bias(node)
    grid = WeightGrid.of(rules, topology.conv_groups(node))
    layer = LayerEncoding(
        weight_scale=[],
        weight_max=grid.largest,
        pairs=grid.pairs,
        bias=(bias if output_factor is None else bias / output_factor).tolist(),
        input_factor=None if input_factor is None else input_factor.tolist(),
        output_factor=None if output_factor is None else output_factor.tolist(),
    )
    exact = layer.equalized(topology.weight(node))
    scales = scales_of(exact, grid, options.method)
    layer.weight_scale = [stored_scale(float(s), rules) for s in scales]
    return layer
