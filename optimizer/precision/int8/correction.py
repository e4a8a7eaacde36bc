"""Bias correction: on the quantized network with a sample of the images, or from statistics alone.

On the network, layer by layer: the exact and the quantized network are computed in lockstep. At each
layer, in the order of the graph, the mean difference of its output over images and positions is
taken from its bias; later layers then see an input that is right on average. Where a layer's output
goes into an Add, and the other input is computed already, the difference of the *sum* is corrected,
so that the last layer of a block makes up for what rounding has done to its shortcut.

From statistics, each layer by itself: what rounding is expected to add. For graphs that cannot be
simulated, or where no sample of the images is at hand; on the network is better, because there each
layer sees what the layers before it have done.

Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
section 4.2 (from statistics) and appendix D (on the network); the target at an Add is this package's
own.
Not handled: errors that depend on the image or the position; the mean of what a ReLU lets through is
not looked at, only the mean before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimizer.graphs.topology import WEIGHTED, Topology
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.rounding import nearest
from optimizer.precision.int8.simulation import (
    Parameters,
    Simulation,
    Step,
    batches,
    exact_layer,
    representing,
    stored_layer,
)
from optimizer.precision.int8.statistics import BINS, Statistics, TensorStatistics
from optimizer.processes import give_back_memory

if TYPE_CHECKING:
    import torch

__all__ = ["Corrected", "correct_biases", "correct_by_statistics", "sqnr"]


@dataclass(frozen=True)
class Corrected:
    """What `correct_biases` found.

    Attributes:
        encodings: With the corrected biases.
        sqnr: Signal to quantization noise at the graph's output on the images that were used, dB.
    """

    encodings: Encodings
    sqnr: float


def correct_biases(
    simulation: Simulation, candidates: Sequence[Encodings], images: NDArray[Any]
) -> list[Corrected]:
    """Correct every bias by the mean error of the quantized network before it.

    Args:
        simulation: The graph under the rules that the encodings were computed for.
        candidates: Encodings that differ in their ranges and in the layers that they keep; the
            exact network is computed once for all of them. They are not changed. Kept layers are
            corrected too: what they read carries the errors of the layers before.
        images: A sample, as the graph takes them; all of them are held in memory at once.

    Returns:
        For each candidate, the corrected encodings and how good the network is with them.
    """
    found = _corrected(simulation, candidates, images)
    give_back_memory()
    return found


def _corrected(
    simulation: Simulation, candidates: Sequence[Encodings], images: NDArray[Any]
) -> list[Corrected]:
    import torch

    topology = simulation.topology
    layers, sums = candidates[0].layers, _sums(topology)
    with torch.no_grad():
        (batch,) = batches(images, len(images))
        reference = {topology.input: batch}
        networks = [_Network(simulation.keeping(one.keep), one, batch) for one in candidates]
        for step in simulation.steps:
            exact, stored = {}, {}
            if step.name in layers:  # one layer's weights at a time, for all of them are 200 MB
                node, layer = topology.nodes[step.name], layers[step.name]
                exact[step.name] = exact_layer(topology, node, layer)
                stored[step.name] = stored_layer(topology, node, layer)
            reference[step.output] = step.compute([reference[n] for n, _ in step.inputs], exact)
            for network in networks:
                network.compute(step, exact, stored)
                if step.name in layers:
                    network.correct(step, reference, sums.get(step.output))
                network.forget(step)
            for name in step.last:
                del reference[name]
        return [network.corrected(reference[topology.output]) for network in networks]


def sqnr(reference: torch.Tensor, quantized: torch.Tensor) -> float:
    """10 log10 of the power of the reference over the power of the difference."""
    signal = float(reference.double().square().sum())
    noise = float((quantized.double() - reference.double()).square().sum())
    if not (np.isfinite(noise) and np.isfinite(signal)):
        return float("-inf")  # NaN or overflow: nothing is worse
    return 10.0 * float(np.log10(signal / noise)) if noise > 0 else float("inf")


def _sums(topology: Topology) -> dict[str, tuple[str, int]]:
    """For a layer's output that completes an Add: the Add, and the number of its other input."""
    order = {str(n.outputs[0].name): i for i, n in enumerate(topology.nodes.values())}
    found = {}
    for node in topology.nodes.values():
        if not topology.is_add(node):
            continue
        inputs = topology.data_inputs(node)
        late = max((0, 1), key=lambda index: order.get(inputs[index], -1))
        producer = topology.producer(inputs[late])
        bare = len(topology.consumers(inputs[late])) == 1
        if producer is not None and producer.op_type in WEIGHTED and bare:
            found[inputs[late]] = (str(node.name), 1 - late)
    return found


class _Network:
    """A quantized network, computed side by side with the exact one."""

    def __init__(self, simulation: Simulation, encodings: Encodings, batch: torch.Tensor) -> None:
        self._simulation = simulation
        self._steps = {step.name: step for step in simulation.steps}
        self._encodings = encodings
        self._represent = representing(encodings)
        self._biases: dict[str, torch.Tensor] = {}
        self._values: dict[str, torch.Tensor] = {simulation.topology.input: batch}
        self._represented: dict[str, torch.Tensor] = {}

    def compute(self, step: Step, exact: Parameters, stored: Parameters) -> None:
        """Compute a step, with this network's own pairs before it."""
        parameters = exact if step.name in self._encodings.keep else stored
        self._biases |= {name: bias for name, (_, bias) in parameters.items()}
        own = self._steps[step.name]
        inputs = self._simulation.inputs_of(own, self._values, self._represented, self._represent)
        self._values[step.output] = step.compute(inputs, parameters)

    def correct(
        self, step: Step, reference: Mapping[str, torch.Tensor], partner: tuple[str, int] | None
    ) -> None:
        """Take the mean error from the bias of the layer computed last."""
        error = self._values[step.output] - reference[step.output]
        if partner is not None:
            error += self._error_at(reference, *partner)
        mean = error.mean([axis for axis in range(error.ndim) if axis != 1])
        self._biases[step.name] = self._biases[step.name] - mean
        shape = [1, -1, *([1] * (error.ndim - 2))]
        self._values[step.output] -= mean.reshape(shape)

    def _error_at(
        self, reference: Mapping[str, torch.Tensor], node: str, index: int
    ) -> torch.Tensor:
        """Error of one input of a later step, as that step will read it."""
        step = self._steps[node]
        name, _ = step.inputs[index]
        one = Step(step.name, step.output, (step.inputs[index],), (), step.compute)
        (read,) = self._simulation.inputs_of(one, self._values, self._represented, self._represent)
        return read - reference[name]

    def forget(self, step: Step) -> None:
        """Let go of tensors that nobody reads any more."""
        for name in step.last:
            self._values.pop(name, None)
            self._represented.pop(name, None)

    def corrected(self, reference: torch.Tensor) -> Corrected:
        """The encodings with the biases that were found."""
        layers = {
            name: layer.model_copy(update={"bias": self._biases[name].tolist()})
            for name, layer in self._encodings.layers.items()
        }
        quality = sqnr(reference, self._values[self._simulation.topology.output])
        return Corrected(self._encodings.model_copy(update={"layers": layers}), quality)


# --- from statistics -----------------------------------------------------------------------------


def correct_by_statistics(
    topology: Topology,
    node: ir.Node,
    encodings: Encodings,
    statistics: Statistics,
    factors: Mapping[str, NDArray[np.float32]],
) -> None:
    """Take the expected mean error of a layer's output from its bias.

    Args:
        topology: The graph.
        node: A layer with weights; one whose channels are in groups is left as it is.
        encodings: Changed in place.
        statistics: Of the graph.
        factors: By which channels were divided, by tensor.
    """
    if topology.groups_of(node) != 1:
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
    seen: TensorStatistics,
    encoding: TensorEncoding,
    factor: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Mean of what rounding adds to each output: E[sum w' x' - sum w x], borders not counted.

    Source: Nagel et al. 2019, section 4.2, with the means measured.
    """
    spatial = tuple(range(2, exact.ndim))
    scale = np.asarray(layer.weight_scale, np.float32).reshape(-1, *([1] * (exact.ndim - 1)))
    rounded = (nearest(exact / scale, layer.grid) * scale).astype(np.float64)
    divide = np.ones(len(seen.exponent)) if factor is None else factor.astype(np.float64)
    mean = seen.mean / divide
    stored_mean = mean + _rounding_bias(seen, encoding, divide)
    error = (
        rounded.sum(axis=spatial) @ stored_mean - exact.sum(axis=spatial, dtype=np.float64) @ mean
    )
    return np.asarray(error, np.float64)


def _rounding_bias(
    seen: TensorStatistics, encoding: TensorEncoding, divide: NDArray[np.float64]
) -> NDArray[np.float64]:
    """E[x' - x] of each channel by its histogram."""
    centers = (np.arange(BINS) - seen.origin + 0.5)[None, :] * np.ldexp(1.0, seen.exponent)[:, None]
    centers = centers / divide[:, None]
    stored = np.clip(np.rint(centers / encoding.scale), *encoding.levels) * encoding.scale
    counts = seen.counts.astype(np.float64)
    counts[:, seen.origin] -= seen.zeros
    total = np.maximum(counts.sum(axis=1) + seen.zeros, 1.0)
    return np.asarray(((stored - centers) * counts).sum(axis=1) / total, np.float64)
