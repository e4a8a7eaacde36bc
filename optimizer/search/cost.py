"""The cost in time of keeping a layer: measured if the engine runs here, else modelled.

* OpenVINO reports the time of every layer. The all-INT8 and the FP32 graph are timed interleaved, in
  a separate process, and the cost of a layer is the difference (``measured``).
* ONNX Runtime's CPU provider has a profiler too, but there a kept layer changes its neighbours; and
  a GPU may not be available. These use a roofline, the larger of FLOPs over peak rate and bytes over
  bandwidth (``model``). For a CPU, the rates are this machine's, as measured by `resnet-opt profile`;
  for TensorRT, they come from a data sheet (`GPU`). The model ranks layers; it does not forecast
  times.

Not handled: work between layers (conversions where the precision changes) is not part of any layer's
time, so `FrontPoint.predicted_ms` is a lower bound if the precision changes often. The chosen graph
is therefore timed as a whole too (`SearchResult.timed_ms`).
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

_MIN_COST_SHARE = 0.02
"""Minimum cost of keeping a layer, as a fraction of its time in high precision."""


@dataclass(frozen=True)
class Machine:
    """Rates of a roofline.

    Attributes:
        name: The device and the source of the rates.
        int8, fp16, fp32: Peak rate, operations per second (a multiply-add counts as two).
        bandwidth: Memory bandwidth, bytes per second.
    """

    name: str
    int8: float
    fp16: float
    fp32: float
    bandwidth: float

    @classmethod
    def of(cls, measured: Ceilings) -> Machine:
        """The measured rates of a CPU, which computes half types in FP32."""
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
    """Predicts the time per image from the kept layers.

    Attributes:
        source: ``measured`` or ``model``.
        reason: The measurement, or the constants of the model.
        int8_ms, high_ms: Time of each weighted layer in INT8 and in high precision, milliseconds.
        rest_ms: Time of everything else, milliseconds.
        falls_back: By the kept layers, further layers that run in high precision too.
    """

    source: Literal["measured", "model"]
    reason: str
    int8_ms: Mapping[str, float]
    high_ms: Mapping[str, float]
    rest_ms: float = 0.0
    falls_back: Callable[[Collection[str]], Collection[str]] = lambda _: ()

    def predict(self, kept: Collection[str]) -> float:
        """Milliseconds per image with these layers in high precision."""
        high = {*kept, *self.falls_back(kept)}
        return self.rest_ms + sum(
            self.high_ms[name] if name in high else self.int8_ms[name] for name in self.int8_ms
        )


def measured_costs(int8: Path, fp32: Path, layers: Collection[str], image_size: int) -> Costs:
    """Measure layer costs with OpenVINO on this machine.

    Args:
        int8: The graph with every layer in INT8.
        fp32: The FP32 graph.
        layers: Weighted layers.
        image_size: Height and width of the image, pixels.

    Raises:
        BuildError: OpenVINO cannot compile a graph, or crashed.
    """
    low, high = timed((int8, fp32), image_size)
    high_ms = _by_layer(high, layers)
    int8_ms = {
        name: min(spent, (1.0 - _MIN_COST_SHARE) * high_ms[name])
        for name, spent in _by_layer(low, layers).items()
    }
    return Costs(
        source="measured",
        reason="layer times reported by OpenVINO for the INT8 and the FP32 graph, one image of "
        f"{image_size} pixels, lower quartiles",
        int8_ms=int8_ms,
        high_ms=high_ms,
        rest_ms=max(low.total_ms - sum(int8_ms.values()), 0.0),
    )


def timed(graphs: Sequence[Path], image_size: int) -> list[TimedGraph]:
    """Time graphs interleaved on OpenVINO; see `optimizer.engines.openvino_layers.time_layers`.

    Raises:
        BuildError: OpenVINO cannot compile a graph, or crashed.
    """
    # In a separate process, because the threads of libraries loaded here would disturb it.
    try:
        times: list[TimedGraph] = call(
            "optimizer.engines.openvino_layers:time_layers", [graphs, image_size]
        )
    except ChildFailed as failure:
        raise BuildError(f"timing openvino {failure.message}", hint="try again") from failure
    return times


def _by_layer(timed: TimedGraph, layers: Collection[str]) -> dict[str, float]:
    spent = dict.fromkeys(layers, 0.0)
    for layer in timed.layers:
        owners = [name for name in layer.torch_names if name in spent]
        for name in owners:
            spent[name] += (layer.time_ms or 0.0) / len(owners)
    return spent


def modelled_costs(graph: Path, topology: Topology, rules: TargetRules, machine: Machine) -> Costs:
    """Predict layer costs with a roofline model.

    Args:
        graph: The FP32 graph's file.
        topology: The same graph.
        rules: The target's rules.
        machine: Rates of the device.
    """
    work = layer_work(graph)
    names = [str(node.name) for node in topology.layers()]
    half = rules.high_precision == "fp16"
    peak, size = (machine.fp16, 2) if half else (machine.fp32, 4)
    return Costs(
        source="model",
        reason=f"roofline model with the rates of {machine.name}",
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
    """ONNX Runtime computes a layer in INT8 only if its output is quantized too."""
    if rules.name != "onnxruntime":
        return lambda _: ()
    outputs: dict[str, list[str]] = {}
    for node in topology.nodes.values():
        if node.op_type == "Gemm" and rules.bias == "int32":
            continue  # INT32 sum with an INT32 bias, dequantized afterwards
        if node.op_type in WEIGHTED:
            tensor = str(node.outputs[0].name)
            readers = [topology.nodes[edge.node] for edge in topology.consumers(tensor)]
            relus = [str(r.outputs[0].name) for r in readers if r.op_type == "Relu"]
            outputs[str(node.name)] = [tensor, *relus]

    def falls_back(kept: Collection[str]) -> Collection[str]:
        quantized = {edge.tensor for edge in topology.quantized_edges(rules, kept)}
        return [name for name, tensors in outputs.items() if not quantized & set(tensors)]

    return falls_back
