"""Learning ranges, biases and the rounding of weights on the whole quantized network.

The quantized network is trained to give what the exact one gives on calibration images, without
labels: the scales of its tensors, its biases, and for every weight which of the integers around it
is taken. Rounding is passed by the gradient as if it were not there, so a scale learns from what
is clipped and from what is rounded alike. The loss is in decibels: of the logits, and with less
weight of what every residual block gives, so that no block is left with errors that happen to
cancel at the output on these images.

A part of the sample is not learned from (ranges and biases to begin with are of all of it, so it is
no independent test). If the network is not better there afterwards, nothing that
was learned is kept, and a note says so.

Sources: Esser et al. 2020, "Learned Step Size Quantization" (scales); Nagel et al. 2020, "Up or
Down? Adaptive Rounding" (rounding is worth learning); Li et al. 2021, "BRECQ" (reconstruction of
blocks from calibration data alone); Zhang et al. 2024, "Adam-mini" (one second moment a layer).
Not handled: scales of weights, which stay; neighbours that a CPU without VNNI adds in 16 bits and
that are near its limit keep their integers; weights of kept layers are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.precision.int8.correction import sqnr
from optimizer.precision.int8.encodings import (
    Encodings,
    LayerEncoding,
    packed,
    stored_scale,
)
from optimizer.precision.int8.rounding import PAIR_LIMIT, heavy_pairs, nearest
from optimizer.precision.int8.simulation import (
    Parameters,
    Represent,
    Simulation,
    batches,
    exact_parameters,
    stored_parameters,
)
from optimizer.precision.topology import PASS_ON
from optimizer.progress import Progress, Silent

__all__ = ["LEAST_LEARNED_FROM", "STEPS", "Learned", "learn"]

STEPS = 300
LEAST_LEARNED_FROM = 16
"""Images; fewer are learned by heart."""
_HELD_OUT = 4
"""Every so many images one that is not learned from."""
_BATCH = range(2, 33)
_BATCH_VALUES = 300_000
"""Input values of a batch: two images of 224 x 224, which hold a gigabyte on their way back."""
_BLOCKS = 0.3
"""Weight of the blocks' decibels beside those of the logits."""
_RATES = {"scale": 1e-3, "bias": 2e-2, "weight": 1e-2}
"""Largest change a step: of a scale's logarithm, of a bias in units of `_UNIT`, of a weight in units
of its scale."""
_UNIT = 0.01
"""Of the root mean square of a layer's output."""
_MARGIN = 4
"""Pairs whose sum is nearer to the limit than this are left alone."""
_MOMENTA = (0.9, 0.99)
_WORTH = 0.01
"""Decibels; less is the rounding of a scale's logarithm."""


@dataclass(frozen=True)
class Learned:
    """What `learn` found.

    Attributes:
        encodings: The learned ones, or those that came in if they were better.
        before, after: Signal to noise at the output on the images held out, dB.
        held_out: How many images that were.
    """

    encodings: Encodings
    before: float
    after: float
    held_out: int

    @property
    def kept(self) -> bool:
        """Whether what was learned is better."""
        return self.after > self.before + _WORTH


def learn(
    simulation: Simulation,
    encodings: Encodings,
    images: NDArray[Any],
    *,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train a quantized network to give what the exact one gives.

    Args:
        simulation: The graph under the rules that the encodings were computed for, with the layers
            that they keep.
        encodings: Where to begin; not changed.
        images: Calibration images, as the graph takes them; at least `LEAST_LEARNED_FROM`.
        steps: Batches to learn from; ``None`` for `STEPS`.
        progress: Told of the steps.

    Returns:
        The same for the same images, libraries and number of threads.
    """
    progress = progress or Silent()
    steps = STEPS if steps is None else steps
    held = np.arange(len(images)) % _HELD_OUT == _HELD_OUT - 1
    network = _Network(simulation, encodings)
    before = _quality(simulation, encodings, images[held])
    progress.start(f"learn for {simulation.rules.name}", total=steps)
    network.calibrate(next(batches(images[~held], _batch(images))))
    optimizer = _Optimizer(network)
    for step, batch in enumerate(_shuffled(images[~held], steps)):
        output, blocks = network.decibels(batch)
        (output + _BLOCKS * blocks).backward()  # type: ignore[no-untyped-call]
        optimizer.step(0.5 * (1.0 + math.cos(math.pi * step / steps)))
        progress.advance(note=f"{-float(output.detach()):.1f} dB")
    learned = network.encodings()
    after = _quality(simulation, learned, images[held])
    progress.finish(f"{before:.1f} -> {after:.1f} dB on images that were not learned from")
    found = Learned(learned, before, after, int(held.sum()))
    return found if found.kept else replace(found, encodings=encodings)


def _batch(images: NDArray[Any]) -> int:
    return max(_BATCH[0], min(_BATCH[-1], _BATCH_VALUES // int(images[0].size)))


def _shuffled(images: NDArray[Any], steps: int) -> Iterator[torch.Tensor]:
    """So many batches; every image once before any comes again."""
    order: list[int] = []
    chance, size = np.random.default_rng(0), min(_batch(images), len(images))
    for _ in range(steps):
        if len(order) < size:
            order += chance.permutation(len(images)).tolist()
        picked, order = order[:size], order[size:]
        (batch,) = batches(images[picked], size)
        yield batch


def _quality(simulation: Simulation, encodings: Encodings, images: NDArray[Any]) -> float:
    """Signal to noise at the output, dB."""
    output = simulation.topology.output
    exact = exact_parameters(simulation.topology, encodings.layers)
    stored = stored_parameters(simulation.topology, encodings)
    wanted, found = [], []
    with torch.no_grad():
        for batch in batches(images, 4 * _batch(images)):
            wanted.append(simulation.run(batch, exact)[output])
            found.append(simulation.run(batch, stored, encodings)[output])
    return sqnr(torch.cat(wanted), torch.cat(found))


@dataclass
class _Weight:
    """A layer's weight between integers.

    Attributes:
        exact: In units of the scales, O x I x …; whole numbers where nothing is learned.
        scale: O x 1 x ….
        free: Where the rounding is learned.
        moved: What is learned, in units of the scales.
        momentum, power: Of its gradient.
    """

    exact: torch.Tensor
    scale: torch.Tensor
    free: torch.Tensor
    largest: int
    moved: torch.Tensor
    momentum: torch.Tensor = field(init=False)
    power: float = 0.0

    def __post_init__(self) -> None:
        self.momentum = torch.zeros_like(self.moved)

    @classmethod
    def of(cls, layer: LayerEncoding, weight: NDArray[np.float32]) -> _Weight:
        """At the integers that the encodings give."""
        column = [-1, *([1] * (weight.ndim - 1))]
        scale = np.asarray(layer.weight_scale, np.float32)
        scaled = layer.equalized(weight) / scale.reshape(column)
        limit = scale * np.float32((PAIR_LIMIT - _MARGIN) / (PAIR_LIMIT - 1))
        free = np.ones(weight.size, np.bool_)
        free[heavy_pairs(layer.equalized(weight), limit, layer.grid).reshape(-1)] = False
        exact = np.where(free.reshape(weight.shape), scaled, nearest(scaled, layer.grid))
        return cls(
            exact=torch.from_numpy(exact),
            scale=torch.from_numpy(scale).reshape(column),
            free=torch.from_numpy(free).reshape(weight.shape),
            largest=layer.weight_max,
            moved=torch.zeros(weight.shape, requires_grad=True),
        )

    def integers(self) -> torch.Tensor:
        """The integers that are taken now."""
        taken: torch.Tensor = _Taken.apply(self.moved, self.exact, self.free, self.largest)
        return taken

    def step(self, rate: float, count: int) -> None:
        """Adam with one second moment for the whole layer."""
        gradient = self.moved.grad
        assert gradient is not None
        first, second = _MOMENTA
        self.momentum.mul_(first).add_(gradient, alpha=1.0 - first)
        self.power = second * self.power + (1.0 - second) * float(gradient.square().mean())
        spread = math.sqrt(self.power / (1.0 - second**count)) * (1.0 - first**count)
        with torch.no_grad():
            self.moved.sub_(self.momentum, alpha=rate / max(spread, 1e-30))
        self.moved.grad = None


class _Taken(torch.autograd.Function):
    """The integers of a weight, with the gradient of what was moved.

    What autograd would keep of the steps is three more tensors of the size of all weights together;
    they are computed again on the way back instead.
    """

    @staticmethod
    def forward(
        ctx: Any, moved: torch.Tensor, exact: torch.Tensor, free: torch.Tensor, largest: int
    ) -> torch.Tensor:
        ctx.save_for_backward(moved, exact, free)
        ctx.largest = largest
        return (moved * free).clamp_(-1.0, 1.0).add_(exact).clamp_(-largest, largest).round_()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        moved, exact, free = ctx.saved_tensors
        passed = (moved * free).clamp_(-1.0, 1.0).add_(exact).abs_() <= ctx.largest
        passed &= free
        passed &= moved.abs() <= 1.0
        return gradient * passed, None, None, None


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """The nearest whole numbers, with the gradient of the values themselves."""
    return values + (values.round() - values).detach()


class _Network:
    """The quantized network with what is learned in it."""

    def __init__(self, simulation: Simulation, encodings: Encodings) -> None:
        topology = simulation.topology
        self.simulation = simulation
        self.begin = encodings
        self.teacher = exact_parameters(topology, encodings.layers)
        self.blocks = _blocks(simulation)
        self.owner = _owners(simulation, encodings)
        self.scales = {
            name: torch.tensor(math.log(encodings.tensors[name].scale), requires_grad=True)
            for name in dict.fromkeys(self.owner.values())
        }
        self.known = {name: torch.tensor(layer.bias) for name, layer in encodings.layers.items()}
        self.biases = {
            name: torch.zeros_like(bias, requires_grad=True) for name, bias in self.known.items()
        }
        self.units = dict.fromkeys(self.biases, 1.0)
        self.weights = {
            str(node.name): _Weight.of(encodings.layers[str(node.name)], topology.weight(node))
            for node in topology.layers()
            if node.name not in encodings.keep
        }

    def calibrate(self, batch: torch.Tensor) -> None:
        """Find the units of the biases."""
        outputs = {s.output: s.name for s in self.simulation.steps if s.name in self.biases}
        with torch.no_grad():
            seen = self.simulation.run(batch, self.teacher, watched=outputs)
        for tensor, name in outputs.items():
            self.units[name] = _UNIT * float(seen[tensor].square().mean().sqrt())

    def decibels(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise over signal at the output, and on average at the blocks; dB."""
        watched = [*self.blocks, self.simulation.topology.output]
        with torch.no_grad():
            wanted = self.simulation.run(batch, self.teacher, watched=watched)
        found = self.simulation.compute(batch, self._parameters(), self._represent(), watched)
        noise = [_decibels(wanted[name], found[name]) for name in watched]
        blocks = torch.stack(noise[:-1]).mean() if self.blocks else torch.zeros(())
        return noise[-1], blocks

    def _parameters(self) -> Parameters:
        parameters: Parameters = {}
        for name, learned in self.biases.items():
            bias = self.known[name] + learned * self.units[name]
            if name in self.weights:
                weight = self.weights[name].integers() * self.weights[name].scale
            else:
                weight = self.teacher[name][0]
            parameters[name] = (weight, bias)
        return parameters

    def _represent(self) -> Represent:
        rules = self.simulation.rules

        def represent(name: str, values: torch.Tensor) -> torch.Tensor:
            encoding = self.begin.tensors[name]
            scale = self.scales[self.owner[name]].exp()
            # As the graph will hold it.
            scale = scale + (stored_scale(float(scale.detach()), rules) - scale).detach()
            low, high = encoding.levels
            return _rounded((values / scale).clamp(low, high)) * scale

        return represent

    def encodings(self) -> Encodings:
        """What was learned, as encodings."""
        rules = self.simulation.rules
        tensors = dict(self.begin.tensors)
        for name, owner in self.owner.items():
            scale = stored_scale(float(self.scales[owner].detach().exp()), rules)
            tensors[name] = tensors[name].model_copy(update={"scale": scale})
        layers = {}
        for name, layer in self.begin.layers.items():
            bias = self.known[name] + self.biases[name].detach() * self.units[name]
            update: dict[str, Any] = {"bias": bias.tolist()}
            if name in self.weights:
                update["rounding"] = self._rounding(name, layer)
            layers[name] = layer.model_copy(update=update)
        return self.begin.model_copy(update={"tensors": tensors, "layers": layers})

    def _rounding(self, name: str, layer: LayerEncoding) -> str | None:
        topology = self.simulation.topology
        plain = layer.model_copy(update={"rounding": None})
        integers = self.weights[name].integers().detach().numpy()
        differences = integers - plain.integers(topology.weight(topology.nodes[name]))
        return packed(differences.astype(np.int8)) if differences.any() else None


def _decibels(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    signal = wanted.square().mean()
    noise = (found - wanted).square().mean()
    return 10.0 * torch.log10(noise / signal + 1e-12)


def _blocks(simulation: Simulation) -> list[str]:
    """What every residual block gives."""
    topology = simulation.topology
    found = []
    for node in topology.nodes.values():
        if topology.is_add(node):
            tensor = str(node.outputs[0].name)
            readers = [topology.nodes[edge.node] for edge in topology.consumers(tensor)]
            relus = [str(r.outputs[0].name) for r in readers if r.op_type == "Relu"]
            found.append(relus[0] if relus else tensor)
    return found


def _owners(simulation: Simulation, encodings: Encodings) -> dict[str, str]:
    """For every quantized tensor the one whose scale it has: pooling passes integers on."""
    topology = simulation.topology
    quantized = [name for step in simulation.steps for name, pair in step.inputs if pair]
    owners: dict[str, str] = {}
    for name in dict.fromkeys(quantized):
        producer = topology.producer(name)
        source = topology.data_inputs(producer)[0] if producer is not None else ""
        passes = producer is not None and producer.op_type in PASS_ON and source in owners
        alike = passes and encodings.tensors[name] == encodings.tensors[source]
        owners[name] = owners[source] if alike else name
    return owners


class _Optimizer:
    """Adam for scales and biases, its small relative for weights."""

    def __init__(self, network: _Network) -> None:
        self._weights = list(network.weights.values())
        self._adam = torch.optim.Adam(
            [
                {"params": list(network.scales.values()), "lr": _RATES["scale"]},
                {"params": list(network.biases.values()), "lr": _RATES["bias"]},
            ],
            betas=_MOMENTA,
        )
        self._rates = [group["lr"] for group in self._adam.param_groups]
        self._count = 0

    def step(self, share: float) -> None:
        """Change everything by its gradient, at this share of the full rate."""
        self._count += 1
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = share * rate
        self._adam.step()
        self._adam.zero_grad()
        for weight in self._weights:
            weight.step(share * _RATES["weight"], self._count)
