"""Bias correction: on the quantized network with sample images, or from statistics only.

On the network: the exact and the quantized network are computed in lockstep. For each layer, in graph
order, the mean error of its output over images and positions is subtracted from its bias; later
layers then read an input without mean error. Where a layer's output goes into an Add whose other
input has already been computed, the error of the *sum* is corrected, so that the last layer of a
block compensates for the rounding errors of its shortcut.

From statistics: each layer on its own, by its expected rounding error. This is for graphs that cannot
be simulated, or without sample images. Correction on the network is better, because each layer sees
the errors of the layers before it.

Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
section 4.2 (from statistics) and appendix D (on the network); correcting the sum at an Add is this
package's own addition.
Not handled: errors that depend on the image or the position; the mean error after a ReLU (only the
mean before it is corrected).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.topology import WEIGHTED, Topology
from optimizer.precision.int8.detection_noise import output_weights
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.rounding import nearest
from optimizer.precision.int8.simulation import (
    Parameters,
    Simulation,
    Step,
    batches,
    exact_layer,
    fake_quantizer,
    quantized_layer,
)
from optimizer.precision.int8.statistics import BINS, Statistics, TensorStatistics
from optimizer.processes import release_memory

if TYPE_CHECKING:
    import torch

__all__ = ["Corrected", "correct_biases", "correct_by_statistics", "sqnr"]


@dataclass(frozen=True)
class Corrected:
    """One result of `correct_biases`.

    Attributes:
        encodings: The encodings with corrected biases.
        sqnr: SQNR of the graph's output on the images used, dB; a detector's is weighted, see
            `output_weights`.
    """

    encodings: Encodings
    sqnr: float


def correct_biases(
    simulation: Simulation, candidates: Sequence[Encodings], images: NDArray[Any]
) -> list[Corrected]:
    """Correct every bias by the mean error of the quantized network at that layer.

    Args:
        simulation: The graph with the rules that the encodings were computed for.
        candidates: Encodings that may differ in ranges and kept layers; the exact network is
            computed once for all of them. They are not modified. Kept layers are corrected too,
            because their inputs carry the errors of earlier layers.
        images: Sample images in the graph's input format, processed as one batch.

    Returns:
        For each candidate, the corrected encodings and their SQNR.
    """
    results = _corrected(simulation, candidates, images)
    release_memory()
    return results


def _corrected(
    simulation: Simulation, candidates: Sequence[Encodings], images: NDArray[Any]
) -> list[Corrected]:
    import torch

    topology = simulation.topology
    layers, addends = candidates[0].layers, _other_addends(topology)
    with torch.no_grad():
        (batch,) = batches(images, len(images))
        reference = {topology.input: batch}
        networks = [
            _QuantizedNetwork(simulation.with_kept_layers(encodings.keep), encodings, batch)
            for encodings in candidates
        ]
        for step in simulation.steps:
            exact, stored = {}, {}
            if step.name in layers:  # one layer's weights at a time: all of them take 200 MB
                node, layer = topology.nodes[step.name], layers[step.name]
                exact[step.name] = exact_layer(topology, node, layer)
                stored[step.name] = quantized_layer(topology, node, layer)
            reference[step.output] = step.compute([reference[n] for n, _ in step.inputs], exact)
            for network in networks:
                network.compute(step, exact, stored)
                if step.name in layers:
                    network.correct(step, reference, addends.get(step.output))
                network.release(step)
            for name in step.last:
                del reference[name]
        return [network.corrected(reference[topology.output]) for network in networks]


def sqnr(
    reference: torch.Tensor, quantized: torch.Tensor, weights: torch.Tensor | None = None
) -> float:
    """SQNR in dB: 10 log10 of the power of the reference over the power of the difference.

    Args:
        reference: The exact values.
        quantized: Values of the same shape.
        weights: Weights of their squares, of a shape that broadcasts; ``None`` for equal weights.
    """
    squares = [reference.double().square(), (quantized.double() - reference.double()).square()]
    if weights is not None:
        squares = [weights * values for values in squares]
    signal, noise = (float(values.sum()) for values in squares)
    if not (np.isfinite(noise) and np.isfinite(signal)):
        return float("-inf")  # NaN or overflow: worse than any finite error
    return 10.0 * float(np.log10(signal / noise)) if noise > 0 else float("inf")


def _other_addends(topology: Topology) -> dict[str, tuple[str, int]]:
    """By the output of a layer that completes an Add: the Add and the index of its other input."""
    order = {str(n.outputs[0].name): i for i, n in enumerate(topology.nodes.values())}
    addends = {}
    for node in topology.nodes.values():
        if not topology.is_add(node):
            continue
        inputs = topology.data_inputs(node)
        last = max((0, 1), key=lambda index: order.get(inputs[index], -1))
        producer = topology.producer(inputs[last])
        bare = len(topology.consumers(inputs[last])) == 1
        if producer is not None and producer.op_type in WEIGHTED and bare:
            addends[inputs[last]] = (str(node.name), 1 - last)
    return addends


class _QuantizedNetwork:
    """A quantized network, computed in lockstep with the exact one."""

    def __init__(self, simulation: Simulation, encodings: Encodings, batch: torch.Tensor) -> None:
        self._simulation = simulation
        self._steps = {step.name: step for step in simulation.steps}
        self._encodings = encodings
        self._fake_quantize = fake_quantizer(encodings)
        self._biases: dict[str, torch.Tensor] = {}
        self._values: dict[str, torch.Tensor] = {simulation.topology.input: batch}
        self._quantized: dict[str, torch.Tensor] = {}

    def compute(self, step: Step, exact: Parameters, stored: Parameters) -> None:
        """Compute a step, with this network's quantized inputs."""
        parameters = exact if step.name in self._encodings.keep else stored
        self._biases |= {name: bias for name, (_, bias) in parameters.items()}
        inputs = self._simulation.inputs_of(
            self._steps[step.name], self._values, self._quantized, self._fake_quantize
        )
        self._values[step.output] = step.compute(inputs, parameters)

    def correct(
        self, step: Step, reference: Mapping[str, torch.Tensor], addend: tuple[str, int] | None
    ) -> None:
        """Subtract the mean error from the bias of the layer just computed."""
        error = self._values[step.output] - reference[step.output]
        if addend is not None:
            error += self._input_error(reference, *addend)
        mean = error.mean([axis for axis in range(error.ndim) if axis != 1])
        self._biases[step.name] = self._biases[step.name] - mean
        shape = [1, -1, *([1] * (error.ndim - 2))]
        self._values[step.output] -= mean.reshape(shape)

    def _input_error(
        self, reference: Mapping[str, torch.Tensor], node: str, index: int
    ) -> torch.Tensor:
        """Error of one input of a later step, as that step will read it."""
        step = self._steps[node]
        name, _ = step.inputs[index]
        with_one_input = Step(step.name, step.output, (step.inputs[index],), (), step.compute)
        (value,) = self._simulation.inputs_of(
            with_one_input, self._values, self._quantized, self._fake_quantize
        )
        return value - reference[name]

    def release(self, step: Step) -> None:
        """Free tensors that no later step reads."""
        for name in step.last:
            self._values.pop(name, None)
            self._quantized.pop(name, None)

    def corrected(self, reference: torch.Tensor) -> Corrected:
        """The encodings with the corrected biases."""
        layers = {
            name: layer.model_copy(update={"bias": self._biases[name].tolist()})
            for name, layer in self._encodings.layers.items()
        }
        topology = self._simulation.topology
        weights = output_weights(topology.model, reference)
        output_sqnr = sqnr(reference, self._values[topology.output], weights)
        return Corrected(self._encodings.model_copy(update={"layers": layers}), output_sqnr)


# --- from statistics -----------------------------------------------------------------------------


def correct_by_statistics(
    topology: Topology,
    node: ir.Node,
    encodings: Encodings,
    statistics: Statistics,
    factors: Mapping[str, NDArray[np.float32]],
) -> None:
    """Subtract the expected mean error of a layer's output from its bias.

    Args:
        topology: The graph.
        node: A weighted layer; grouped convolutions are not corrected.
        encodings: Modified in place.
        statistics: Statistics of the graph.
        factors: Equalization factors (divisors of the channels) by tensor name.
    """
    if topology.conv_groups(node) != 1:
        return
    source = topology.data_inputs(node)[0]
    layer = encodings.layers[str(node.name)]
    error = _mean_error(
        layer.equalized(topology.weight(node)),
        layer,
        statistics.tensors[source],
        encodings.tensors[source],
        factors.get(source),
    )
    layer.bias = (np.asarray(layer.bias) - error).astype(np.float32).tolist()


def _mean_error(
    exact: NDArray[np.float32],
    layer: LayerEncoding,
    observed: TensorStatistics,
    encoding: TensorEncoding,
    factor: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Mean rounding error of each output channel: E[sum w' x' - sum w x], ignoring borders.

    Source: Nagel et al. 2019, section 4.2, with measured means.
    """
    spatial = tuple(range(2, exact.ndim))
    scale = np.asarray(layer.weight_scale, np.float32).reshape(-1, *([1] * (exact.ndim - 1)))
    rounded = (nearest(exact / scale, layer.grid) * scale).astype(np.float64)
    divide = np.ones(len(observed.exponent)) if factor is None else factor.astype(np.float64)
    mean = observed.mean / divide
    stored_mean = mean + _rounding_bias(observed, encoding, divide)
    error = (
        rounded.sum(axis=spatial) @ stored_mean - exact.sum(axis=spatial, dtype=np.float64) @ mean
    )
    return np.asarray(error, np.float64)


def _rounding_bias(
    observed: TensorStatistics, encoding: TensorEncoding, divide: NDArray[np.float64]
) -> NDArray[np.float64]:
    """E[x' - x] of each channel, from its histogram."""
    centers = (np.arange(BINS) - observed.origin + 0.5)[None, :] * np.ldexp(1.0, observed.exponent)[
        :, None
    ]
    centers = centers / divide[:, None]
    stored = np.clip(np.rint(centers / encoding.scale), *encoding.levels) * encoding.scale
    counts = observed.counts.astype(np.float64)
    counts[:, observed.origin] -= observed.zeros
    total = np.maximum(counts.sum(axis=1) + observed.zeros, 1.0)
    return np.asarray(((stored - centers) * counts).sum(axis=1) / total, np.float64)
