"""OpenVINO on the CPU: FP32, BF16 (where the CPU computes it) and INT8 graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines.batching import check_batch, run_in_chunks
from optimizer.engines.graph_facts import annotate, graph_facts
from optimizer.engines.protocol import (
    Array,
    Availability,
    BuildSettings,
    Built,
    TensorSpec,
    check_cpu_settings,
)
from optimizer.errors import BuildError, UnsupportedPrecision, UsageError
from optimizer.progress import Progress
from optimizer.results import LayerInfo
from optimizer.targets.hardware import cpu_features

__all__ = ["OpenVino", "TimedGraph", "time_layers"]

_HINTS = {"fp32": "f32", "int8": "f32", "mixed": "f32", "bf16": "bf16"}
"""The precision hint is always set: its default turns FP32 graphs into BF16 on some CPUs."""
_PRECISIONS = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i8": "int8",
    "u8": "int8",
    "i32": "int32",
}


class OpenVino:
    """The ``openvino`` backend; an engine is an exported compiled model."""

    name = "openvino"
    suffix = ".blob"
    libraries = ("openvino",)

    def availability(self) -> Availability:
        """See `Backend.availability`."""
        from importlib import metadata

        try:
            version = metadata.version("openvino")
        except metadata.PackageNotFoundError:
            return Availability(False, False, "openvino is not installed", "pip install openvino")
        return Availability(True, True, f"openvino {version}, device CPU")

    def device(self) -> dict[str, Any]:
        """See `Backend.device`; kernels are chosen for the CPU's instruction sets."""
        cpu = cpu_features()
        return {"kind": "cpu", "model": cpu.model, "flags": cpu.flags}

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """See `Backend.build`."""
        import openvino as ov

        facts = graph_facts(graph)
        hint = self._hint(settings)
        core = ov.Core()
        progress.start(f"openvino {settings.precision}", total=3)
        started = time.perf_counter()
        try:
            model = core.read_model(graph)
            progress.advance(note="compiling")
            compiled = core.compile_model(model, "CPU", _config(hint, settings.threads))
            progress.advance(note="exporting")
            output.write_bytes(compiled.export_model().getbuffer())
        except RuntimeError as error:
            raise BuildError(
                f"OpenVINO could not compile {graph.name}: {_first_line(error)}"
            ) from error
        seconds = time.perf_counter() - started
        layers = annotate(_layers(compiled), graph)
        progress.advance()
        progress.finish(f"{len(layers)} layers")
        notes = []
        if settings.options.get("storage_only"):
            notes.append(f"{settings.precision} storage, FP32 compute")
        if facts.precision in {"int8", "mixed"} and not cpu_features().vnni:
            notes.append(
                "no VNNI: INT8 products are added in 16 bits; weights are rounded so that none saturates"
            )
        return Built(layers=layers, seconds=seconds, notes=notes)

    def load(
        self, engine: Path, *, threads: int | None = None, device: str | None = None
    ) -> Session:
        """See `Backend.load`."""
        return self.load_streams(engine, streams=1, threads=threads, device=device)[0]

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[Session]:
        """See `ConcurrentBackend.load_streams`; the threads are divided among the streams."""
        import openvino as ov

        from optimizer.artifacts import read_manifest

        settings = read_manifest(engine).settings
        core = ov.Core()
        config = _config(settings["hint"], threads or settings.get("threads"), streams)

        def opened(**more: str) -> Any:
            return core.import_model(engine.read_bytes(), device or "CPU", {**config, **more})

        compiled = opened()
        return [Session(compiled, lambda: opened(PERF_COUNT="YES")) for _ in range(streams)]

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """What this backend adds to the manifest's settings."""
        check_cpu_settings("OpenVINO", settings)
        return {"hint": self._hint(settings)}

    def _hint(self, settings: BuildSettings) -> str:
        precision = settings.precision
        if settings.options.get("storage_only"):
            return "f32"
        if precision not in _HINTS:
            raise UnsupportedPrecision(
                f"OpenVINO does not compute {precision.upper()} on a CPU: it would compute in FP32",
                mend="--engine tensorrt or tensorrt-rtx, or --storage-only for smaller files",
            )
        if precision == "bf16" and not cpu_features().bf16:
            raise UnsupportedPrecision(
                "this CPU has no BF16 instructions (AVX-512 BF16 or AMX): OpenVINO would compute in FP32",
                mend="--engine tensorrt or tensorrt-rtx, or --storage-only for smaller files",
            )
        return _HINTS[precision]


def _config(hint: str, threads: int | None, streams: int = 1) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads or cpu_features().physical_cores),
        "INFERENCE_PRECISION_HINT": hint,
        "ENABLE_HYPER_THREADING": "NO",
    }


class Session:
    """A compiled model with one infer request.

    Args:
        compiled: The model.
        reopen: Opens the same engine once more, with its performance counters; ``None`` for a
            graph that was compiled on the way.
    """

    def __init__(self, compiled: Any, reopen: Callable[[], Any] | None = None) -> None:
        self._compiled = compiled
        self._reopen = reopen
        self._request = compiled.create_infer_request()
        self.input = _spec(compiled.inputs[0])
        self.output = _spec(compiled.outputs[0])

    def run(self, batch: Array) -> Array:
        """See `Session.run` of the protocol."""
        check_batch(batch, self.input)
        size = self.input.shape[0]
        if size is not None:
            return run_in_chunks(self._infer, batch, size)
        return self._infer(np.ascontiguousarray(batch))

    def _infer(self, batch: Array) -> Array:
        outputs = self._request.infer([batch], share_inputs=True)
        return np.array(outputs[0], np.float32)

    def bind(self, batch: Array) -> _Bound:
        """See `Session.bind` of the protocol; the batch must have the engine's own size."""
        check_batch(batch, self.input)
        return _Bound(self._compiled, np.ascontiguousarray(batch))

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers` of the protocol."""
        return _layers(self._compiled)

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """See `TimesLayers.time_layers`; on fresh copies, because of `_LayerClock`."""
        if self._reopen is None:
            raise UsageError(
                "a graph compiled on the way is not timed by layer",
                mend="build an engine from it: resnet-opt build --engine openvino",
            )
        check_batch(batch, self.input)
        batch = np.ascontiguousarray(batch)
        spent: dict[str, list[float]] = {}
        for done in range(0, calls, _CALLS_A_COPY):
            compiled = self._reopen()
            bound, clock = _Bound(compiled, batch), _LayerClock()
            for call in range(_SETTLING + min(_CALLS_A_COPY, calls - done)):
                bound.enqueue()
                for name, seconds in clock.read(bound.request).items():
                    if call >= _SETTLING:
                        spent.setdefault(name, []).append(seconds)
        times = {name: max(0.0, 1e3 * float(np.median(one))) for name, one in spent.items()}
        moved = _bytes_moved(compiled)
        layers = [
            layer.model_copy(
                update={"time_ms": times.pop(layer.name), "bytes": moved.get(layer.name)}
            )
            for layer in _layers(compiled)
            if layer.name in times
        ]
        return layers + [
            LayerInfo(name=name, type="unknown", precision="unknown", time_ms=one)
            for name, one in times.items()
        ]

    def close(self) -> None:
        """See `Session.close` of the protocol."""
        self._request = None
        self._compiled = None


class _Bound:
    """One batch in shared memory; computing is synchronous, as a CPU engine is called."""

    def __init__(self, compiled: Any, batch: Array) -> None:
        import openvino as ov

        self._batch = batch
        self.request = compiled.create_infer_request()
        self.request.set_input_tensor(ov.Tensor(batch, shared_memory=True))

    def upload(self) -> None:
        """Nothing: the engine reads the batch where it lies."""

    def enqueue(self) -> None:
        """Compute."""
        self.request.infer(share_outputs=True)

    def wait(self) -> None:
        """Nothing: `enqueue` has computed."""

    def download(self) -> None:
        """Nothing: the outputs are in host memory."""

    def output(self) -> Array:
        """See `Bound.output`."""
        return np.asarray(self.request.get_output_tensor(0).data, np.float32)


class _LayerClock:
    """Times of single calls, from counters that are means over all calls.

    The plugin's counters are means since the model was loaded, in whole microseconds. The call
    number ``k`` took ``k`` times the mean after it less ``k - 1`` times the mean before it, with an
    error of up to ``k`` microseconds: so no clock is read more than some twenty times.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._means: dict[str, float] = {}

    def read(self, request: Any) -> dict[str, float]:
        """Seconds of each layer in the call that is just over."""
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


def _spec(port: Any) -> TensorSpec:
    shape = tuple(int(d.get_length()) if d.is_static else None for d in port.partial_shape)
    dtype = {"f32": "float32", "u8": "uint8"}.get(port.element_type.get_type_name(), "float32")
    return TensorSpec(port.any_name, shape, dtype)


@dataclass(frozen=True)
class TimedGraph:
    """Where the time of one image goes.

    Attributes:
        total_ms: Wall time of one inference.
        layers: The layers with their own times (``time_ms``); what the plugin does between them
            is in the total alone.
    """

    total_ms: float
    layers: list[LayerInfo]


def time_layers(graphs: Sequence[Path], image_size: int, *, rounds: int = 60) -> list[TimedGraph]:
    """Time graphs layer by layer on one image, in turns, as this backend compiles them.

    Times are lower quartiles: what else the machine does only ever adds to them. Call it in a
    process of its own, where no other library's threads wait. The graphs are compiled anew every
    twenty rounds, because of `_LayerClock`.

    Args:
        graphs: FP32 or INT8 graphs of a dynamic batch.
        image_size: Height and width of the image.
        rounds: Inferences of each graph that count; three more come first after each compilation.

    Raises:
        BuildError: OpenVINO cannot compile a graph.
    """
    import openvino as ov

    core = ov.Core()
    config = {**_config("f32", None), "PERF_COUNT": "YES"}
    totals: list[list[float]] = [[] for _ in graphs]
    times: list[dict[str, list[float]]] = [{} for _ in graphs]
    for done in range(0, rounds, _CALLS_A_COPY):
        try:
            compiled = [core.compile_model(core.read_model(path), "CPU", config) for path in graphs]
        except RuntimeError as error:
            line = _first_line(error)
            raise BuildError(f"OpenVINO could not compile the graphs: {line}") from error
        batch = _noise(_spec(compiled[0].inputs[0]), image_size)
        copies = [(one.create_infer_request(), _LayerClock()) for one in compiled]
        for turn in range(_SETTLING + min(_CALLS_A_COPY, rounds - done)):
            for number, (request, clock) in enumerate(copies):
                started = time.perf_counter()
                request.infer([batch])
                seconds = time.perf_counter() - started
                spent = clock.read(request)
                if turn < _SETTLING:
                    continue
                totals[number].append(seconds)
                for name, one in spent.items():
                    times[number].setdefault(name, []).append(one)
    return [
        TimedGraph(
            _quartile_ms(total),
            [
                layer.model_copy(update={"time_ms": _quartile_ms(spent[layer.name])})
                for layer in annotate(_layers(one), path)
                if layer.name in spent
            ],
        )
        for path, one, total, spent in zip(graphs, compiled, totals, times, strict=True)
    ]


def _quartile_ms(seconds: list[float]) -> float:
    return max(0.0, 1e3 * float(np.quantile(seconds, 0.25)))


def _noise(spec: TensorSpec, size: int) -> Array:
    rng = np.random.default_rng(0)
    batch = spec.shape[0] or 1
    if spec.dtype == "uint8":
        return rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    return rng.normal(size=(batch, 3, size, size)).astype(np.float32)


_SETTLING = 3
"""Calls of a fresh copy that do not count: they allocate, and fill the caches."""
_CALLS_A_COPY = 20
_SKIPPED = {"Input", "Output", "Const", "Result", "Parameter"}


def _layers(compiled: Any) -> list[LayerInfo]:
    """Layers of the execution graph, as the plugin tells them."""
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


def _bytes_moved(compiled: Any) -> dict[str, int]:
    """Bytes of the inputs (weights among them) and outputs of each layer, as it last ran."""
    moved = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        ports = [*op.inputs(), *op.outputs()]
        if all(port.get_partial_shape().is_static for port in ports):
            moved[op.get_friendly_name()] = sum(
                port.get_element_type().size * int(np.prod(port.get_shape())) for port in ports
            )
    return moved


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
