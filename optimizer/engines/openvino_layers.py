"""Layers of models compiled by OpenVINO: their precisions and times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines.layer_annotation import annotate
from optimizer.engines.openvino_models import compile_model, config, first_line, spec_of
from optimizer.engines.protocol import Array, TensorSpec
from optimizer.errors import BuildError
from optimizer.graphs.facts import graph_facts
from optimizer.results import LayerInfo

__all__ = [
    "CALLS_PER_COPY", "WARMUP_CALLS", "LayerClock", "TimedGraph", "bytes_moved", "layers_of", "time_layers",
]  # fmt: skip

_PRECISIONS = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i8": "int8",
    "u8": "int8",
    "i32": "int32",
}


WARMUP_CALLS = 3
"""Calls of a newly opened model that are not measured: they allocate and fill caches."""
CALLS_PER_COPY = 20
"""Calls after which a model is reopened, because of `LayerClock`."""
_SKIPPED = {"Input", "Output", "Const", "Result", "Parameter"}


def layers_of(compiled: Any) -> list[LayerInfo]:
    """Layers of the execution graph, as the plugin reports them."""
    layers = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {str(k): str(v.astype(str)) for k, v in op.get_rt_info().items()}
        kind = info.get("layerType", op.get_type_name())
        if kind in _SKIPPED:
            continue
        original = [n for n in info.get("originalLayersNames", "").split(",") if n]
        runtime = info.get("runtimePrecision", "")
        layers.append(
            LayerInfo(
                name=op.get_friendly_name(),
                torch_names=[n for n in original if not n.endswith((".quantize", ".dequantize"))],
                type=kind,
                precision=_PRECISIONS.get(runtime, runtime or "unknown"),
                tactic=info.get("primitiveType") or None,
            )
        )
    return layers


def bytes_moved(compiled: Any) -> dict[str, int]:
    """Bytes of the inputs (including weights) and outputs of each layer in its last run."""
    moved = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        ports = [*op.inputs(), *op.outputs()]
        if all(port.get_partial_shape().is_static for port in ports):
            moved[op.get_friendly_name()] = sum(
                port.get_element_type().size * int(np.prod(port.get_shape())) for port in ports
            )
    return moved


class LayerClock:
    """Recovers times of single calls from counters that report running means.

    The plugin's counters are means since the model was loaded, in whole microseconds. Call ``k`` took
    ``k`` times the mean after it minus ``k - 1`` times the mean before it, with an error of up to
    ``k`` microseconds. A clock is therefore used for about twenty calls only.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._means: dict[str, float] = {}

    def read(self, request: Any) -> dict[str, float]:
        """Seconds of each layer in the last call."""
        means = {
            layer.node_name: layer.real_time.total_seconds()
            for layer in request.get_profiling_info()
            if layer.status == layer.Status.EXECUTED
        }
        before, self._means = self._means, means
        self._calls += 1
        return {
            name: self._calls * mean - (self._calls - 1) * before.get(name, 0.0)
            for name, mean in means.items()
        }


@dataclass(frozen=True)
class TimedGraph:
    """Times of one inference.

    Attributes:
        total_ms: Wall time of the inference.
        layers: The layers with ``time_ms``; time between layers counts only in the total.
    """

    total_ms: float
    layers: list[LayerInfo]


def time_layers(graphs: Sequence[Path], image_size: int, *, rounds: int = 60) -> list[TimedGraph]:
    """Time graphs layer by layer on one image, interleaved, as this backend compiles them.

    Times are lower quartiles, because disturbances only add time. Call it in a separate process,
    without threads of other libraries. Graphs are recompiled every twenty rounds, because of
    `LayerClock`.

    Args:
        graphs: FP32 or INT8 graphs with a dynamic batch.
        image_size: Height and width of the image in pixels.
        rounds: Measured inferences per graph; three warm-up inferences follow each compilation.

    Raises:
        BuildError: OpenVINO cannot compile a graph.
    """
    import openvino as ov

    core = ov.Core()
    properties = {**config("f32", None), "PERF_COUNT": "YES"}
    precisions = [(path, graph_facts(path).precision) for path in graphs]
    totals: list[list[float]] = [[] for _ in graphs]
    times: list[dict[str, list[float]]] = [{} for _ in graphs]
    for done in range(0, rounds, CALLS_PER_COPY):
        try:
            compiled = [
                compile_model(core, core.read_model(path), properties, precision)
                for path, precision in precisions
            ]
        except RuntimeError as error:
            line = first_line(error)
            raise BuildError(f"OpenVINO could not compile the graphs: {line}") from error
        batch = _noise(spec_of(compiled[0].inputs[0]), image_size)
        copies = [(model.create_infer_request(), LayerClock()) for model in compiled]
        for turn in range(WARMUP_CALLS + min(CALLS_PER_COPY, rounds - done)):
            for number, (request, clock) in enumerate(copies):
                started = time.perf_counter()
                request.infer([batch])
                seconds = time.perf_counter() - started
                spent = clock.read(request)
                if turn < WARMUP_CALLS:
                    continue
                totals[number].append(seconds)
                for name, layer_s in spent.items():
                    times[number].setdefault(name, []).append(layer_s)
    return [
        TimedGraph(
            _quartile_ms(total),
            [
                layer.model_copy(update={"time_ms": _quartile_ms(spent[layer.name])})
                for layer in annotate(layers_of(model), path)
                if layer.name in spent
            ],
        )
        for path, model, total, spent in zip(graphs, compiled, totals, times, strict=True)
    ]


def _quartile_ms(seconds: list[float]) -> float:
    return max(0.0, 1e3 * float(np.quantile(seconds, 0.25)))


def _noise(spec: TensorSpec, size: int) -> Array:
    rng = np.random.default_rng(0)
    batch = spec.shape[0] or 1
    if spec.dtype == "uint8":
        return rng.integers(0, 256, (batch, size, size, spec.shape[3] or 3), np.uint8)
    return rng.normal(size=(batch, spec.shape[1] or 3, size, size)).astype(np.float32)
