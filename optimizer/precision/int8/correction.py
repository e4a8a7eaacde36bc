"""Bias correction on the quantized network, layer by layer, with a sample of the images.

The exact and the quantized network are computed in lockstep. At each layer, in the order of the
graph, the mean difference of its output over images and positions is taken from its bias; later
layers then see an input that is right on average. Where a layer's output goes into an Add, and the
other input is computed already, the difference of the *sum* is corrected, so that the last layer of
a block makes up for what rounding has done to its shortcut.

Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
appendix D (empirical bias correction); the target at an Add is this package's own.
Not handled: errors that depend on the image or the position; the mean of what a ReLU lets through is
not looked at, only the mean before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.precision.int8.encodings import Encodings
from optimizer.precision.int8.simulation import (
    Parameters,
    Simulation,
    Step,
    batches,
    exact_parameters,
    stored_parameters,
)
from optimizer.precision.topology import WEIGHTED, Topology

if TYPE_CHECKING:
    import torch

__all__ = ["Corrected", "correct_biases", "sqnr"]


@dataclass(frozen=True)
class Corrected:
    """What `correct_biases` found.

    Attributes:
        encodings: With the corrected biases.
        sqnr: Signal to quantization noise at the graph's output on the images that were used, dB.
    """

    encodings: Encodings
    sqnr: float


def correct_biases(simulation: Simulation, encodings: Encodings, images: NDArray[Any]) -> Corrected:
    """Correct every bias by the mean error of the quantized network before it.

    Args:
        simulation: The graph under the rules that the encodings were computed for.
        encodings: They are not changed; their biases are the starting point.
        images: A sample, as the graph takes them; all of them are held in memory at once.

    Returns:
        The corrected encodings, and how good the network is with them.
    """
    import torch

    topology = simulation.topology
    exact = exact_parameters(topology, encodings.layers)
    stored = stored_parameters(topology, encodings)
    sums = _sums(topology)
    with torch.no_grad():
        (batch,) = batches(images, len(images))
        lockstep = _Lockstep(simulation, encodings, exact, stored, batch)
        for step in simulation.steps:
            lockstep.compute(step)
            if step.name in stored:
                lockstep.correct(step, sums.get(step.output))
            lockstep.forget(step)
    layers = {
        name: layer.model_copy(update={"bias": stored[name][1].tolist()})
        for name, layer in encodings.layers.items()
    }
    corrected = encodings.model_copy(update={"layers": layers})
    return Corrected(corrected, sqnr(*lockstep.outputs))


def sqnr(reference: torch.Tensor, quantized: torch.Tensor) -> float:
    """10 log10 of the power of the reference over the power of the difference."""
    signal = float(reference.double().square().sum())
    noise = float((quantized.double() - reference.double()).square().sum())
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


class _Lockstep:
    """Both networks, computed side by side."""

    def __init__(
        self,
        simulation: Simulation,
        encodings: Encodings,
        exact: Parameters,
        stored: Parameters,
        batch: torch.Tensor,
    ) -> None:
        self._simulation = simulation
        self._steps = {step.name: step for step in simulation.steps}
        self._encodings = encodings
        self._parameters = (exact, stored)
        source = simulation.topology.input
        self._exact: dict[str, torch.Tensor] = {source: batch}
        self._quantized: dict[str, torch.Tensor] = {source: batch}
        self._represented: dict[str, torch.Tensor] = {}

    @property
    def outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The graph's output, exact and quantized."""
        name = self._simulation.topology.output
        return self._exact[name], self._quantized[name]

    def compute(self, step: Step) -> None:
        """Compute a step in both networks."""
        inputs = [self._exact[name] for name, _ in step.inputs]
        self._exact[step.output] = step.compute(inputs, self._parameters[0])
        inputs = self._simulation.inputs_of(
            step, self._quantized, self._represented, self._encodings
        )
        self._quantized[step.output] = step.compute(inputs, self._parameters[1])

    def correct(self, step: Step, partner: tuple[str, int] | None) -> None:
        """Take the mean error from the bias of the layer computed last."""
        error = self._quantized[step.output] - self._exact[step.output]
        if partner is not None:
            error += self._error_at(*partner)
        mean = error.mean([axis for axis in range(error.ndim) if axis != 1])
        weight, bias = self._parameters[1][step.name]
        self._parameters[1][step.name] = (weight, bias - mean)
        shape = [1, -1, *([1] * (error.ndim - 2))]
        self._quantized[step.output] = self._quantized[step.output] - mean.reshape(shape)

    def _error_at(self, node: str, index: int) -> torch.Tensor:
        """Error of one input of a later step, as that step will read it."""
        step = self._steps[node]
        name, _ = step.inputs[index]
        one = Step(step.name, step.output, (step.inputs[index],), (), step.compute)
        (read,) = self._simulation.inputs_of(
            one, self._quantized, self._represented, self._encodings
        )
        return read - self._exact[name]

    def forget(self, step: Step) -> None:
        """Let go of tensors that nobody reads any more."""
        for name in step.last:
            for values in (self._exact, self._quantized, self._represented):
                values.pop(name, None)
