"""What keeping a layer costs in time: measured where the engine runs here, else by a model.

* OpenVINO tells the time of every layer, so the all-INT8 and the FP32 graph are timed in turns, in
  a process of their own, and a layer costs the difference (``measured``).
* ONNX Runtime's CPU provider profiles too, but one kept layer changes its neighbours there, and a
  GPU may not be at hand: a roofline, the larger of FLOPs over the peak and bytes over the
  bandwidth (``model``). For a CPU the rates are this machine's, as `resnet-opt profile` measures
  them; for TensorRT they are those of a data sheet (`GPU`). It ranks layers; it is no forecast.

Not handled: what an engine does between layers (conversions at the border of the precisions) is not
in a layer's own time, so `FrontPoint.predicted_ms` is a lower bound where islands are many. What was
chosen is therefore timed as a whole too (`SearchResult.timed_ms`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optimizer.engines.openvino_layers import TimedGraph
from optimizer.errors import BuildError
from optimizer.graphs.facts import LayerWork, layer_work
from optimizer.graphs.topology import WEIGHTED, Topology
from optimizer.processes import ChildFailed, call
from optimizer.results import Ceilings
from optimizer.targets.rules import TargetRules

__all__ = ["GPU", "Costs", "Machine", "measured_costs", "modelled_costs", "timed"]

_LEAST_SHARE = 0.02
"""Keeping a layer is never free: at least this share of its time in high precision."""


@dataclass(frozen=True)
class Machine:
    """Rates of a roofline.

    Attributes:
        name: Whose they are, with the source.
        int8, fp16, fp32: Peak of products, operations a second (a multiply-add is two).
        bandwidth: Memory, bytes a second.
    """

    name: str
    int8: float
    fp16: float
    fp32: float
    bandwidth: float

    @classmethod
    def of(cls, measured: Ceilings) -> Machine:
        """A CPU's: half types are computed in FP32 there."""
        fp32 = measured.compute["fp32"].rate
        int8 = measured.compute["int8"].rate if "int8" in measured.compute else 2.0 * fp32
        return cls(
            name=f"{measured.device.get('cpu', 'this CPU')}, {measured.threads} threads "
            "(matrix products and copying, measured)",
            int8=int8,
            fp16=fp32,
            fp32=fp32,
            bandwidth=measured.memory.rate,
        )


GPU = Machine(
    "NVIDIA A10 (data sheet of 2021, dense: INT8 250 TOPS, FP16 125 TFLOPS, FP32 31.2 TFLOPS, "
    "600 GB/s)",
    int8=250e12,
    fp16=125e12,
    fp32=31.2e12,
    bandwidth=600e9,
)


@dataclass(frozen=True)
class Costs:
    """Times of one image by the layers that are kept.

    Attributes:
        source: ``measured`` or ``model``.
        reason: What was measured, or the constants.
        int8_ms, high_ms: Each weighted layer in INT8 and in high precision, milliseconds.
        rest_ms: Everything else.
        falls_back: Layers that run in high precision too, although they are not kept.
    """

    source: Literal["measured", "model"]
    reason: str
    int8_ms: Mapping[str, float]
    high_ms: Mapping[str, float]
    rest_ms: float = 0.0
    falls_back: Callable[[Collection[str]], Collection[str]] = lambda _: ()

    def predict(self, kept: Collection[str]) -> float:
        """Milliseconds of one image with these layers in high precision."""
        high = {*kept, *self.falls_back(kept)}
        return self.rest_ms + sum(
            self.high_ms[name] if name in high else self.int8_ms[name] for name in self.int8_ms
        )


def measured_costs(int8: Path, fp32: Path, layers: Collection[str], image_size: int) -> Costs:
    """Costs on OpenVINO, on this machine.

    Args:
        int8: The graph with every layer in INT8.
        fp32: The FP32 graph.
        layers: Weighted layers.
        image_size: Height and width of the image.

    Raises:
        BuildError: OpenVINO cannot compile one of them, or crashed.
    """
    low, high = timed((int8, fp32), image_size)
    high_ms = _by_layer(high, layers)
    int8_ms = {
        name: min(spent, (1.0 - _LEAST_SHARE) * high_ms[name])
        for name, spent in _by_layer(low, layers).items()
    }
    return Costs(
        source="measured",
        reason="OpenVINO's own times of the layers of the INT8 and the FP32 graph, one image of "
        f"{image_size} pixels, lower quartiles",
        int8_ms=int8_ms,
        high_ms=high_ms,
        rest_ms=max(low.total_ms - sum(int8_ms.values()), 0.0),
    )


def timed(graphs: Sequence[Path], image_size: int) -> list[TimedGraph]:
    """Time graphs on OpenVINO in turns; see `optimizer.engines.openvino_layers.time_layers`.

    Raises:
        BuildError: OpenVINO cannot compile one of them, or crashed.
    """
    # A process of its own: the threads of libraries that are loaded here would disturb it.
    try:
        found: list[TimedGraph] = call(
            "optimizer.engines.openvino_layers:time_layers", [graphs, image_size]
        )
    except ChildFailed as failure:
        raise BuildError(f"timing openvino {failure.message}", hint="try again") from failure
    return found


def _by_layer(timed: TimedGraph, layers: Collection[str]) -> dict[str, float]:
    spent = dict.fromkeys(layers, 0.0)
    for layer in timed.layers:
        owners = [name for name in layer.torch_names if name in spent]
        for name in owners:
            spent[name] += (layer.time_ms or 0.0) / len(owners)
    return spent


def modelled_costs(graph: Path, topology: Topology, rules: TargetRules, machine: Machine) -> Costs:
    """Costs by a roofline.

    Args:
        graph: The FP32 graph's file.
        topology: The same graph.
        rules: The target's rules.
        machine: What will compute it.
    """
    work = layer_work(graph)
    names = [str(node.name) for node in topology.layers()]
    half = rules.high_precision == "fp16"
    peak, size = (machine.fp16, 2) if half else (machine.fp32, 4)
    return Costs(
        source="model",
        reason=f"a roofline with the rates of {machine.name}",
        int8_ms={name: _roofline_ms(work[name], machine.int8, 1, machine) for name in names},
        high_ms={name: _roofline_ms(work[name], peak, size, machine) for name in names},
        falls_back=_falls_back(topology, rules),
    )


def _roofline_ms(work: LayerWork, peak: float, size: int, machine: Machine) -> float:
    moved = size * (work.weights + work.inputs + work.outputs)
    return 1e3 * max(work.flops / peak, moved / machine.bandwidth)


def _falls_back(
    topology: Topology, rules: TargetRules
) -> Callable[[Collection[str]], Collection[str]]:
    """ONNX Runtime multiplies integers only where the product's output is quantized too."""
    if rules.name != "onnxruntime":
        return lambda _: ()
    behind: dict[str, list[str]] = {}
    for node in topology.nodes.values():
        if node.op_type == "Gemm" and rules.bias == "int32":
            continue  # its product is INT32 with the bias, and dequantized after
        if node.op_type in WEIGHTED:
            tensor = str(node.outputs[0].name)
            readers = [topology.nodes[edge.node] for edge in topology.consumers(tensor)]
            relus = [str(r.outputs[0].name) for r in readers if r.op_type == "Relu"]
            behind[str(node.name)] = [tensor, *relus]

    def falls_back(kept: Collection[str]) -> Collection[str]:
        quantized = {edge.tensor for edge in topology.quantized_edges(rules, kept)}
        return [name for name, tensors in behind.items() if not quantized & set(tensors)]

    return falls_back
