"""OpenVINO on the CPU: FP32, INT8 and, if the CPU supports it, BF16 graphs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines.batching import check_batch, run_in_chunks
from optimizer.engines.layer_annotation import Annotator
from optimizer.engines.openvino_layers import (
    CALLS_PER_COPY,
    WARMUP_CALLS,
    LayerClock,
    bytes_moved,
    layers_of,
)
from optimizer.engines.openvino_models import (
    FUSED_SUMS,
    Compiled,
    Models,
    compile_model,
    config,
    first_line,
    pack,
    spec_of,
)
from optimizer.engines.protocol import (
    Array,
    Availability,
    BuildSettings,
    Built,
)
from optimizer.engines.saturation import saturation_note
from optimizer.errors import BuildError, UnsupportedPrecision, UsageError
from optimizer.graphs.facts import graph_facts
from optimizer.progress import Progress
from optimizer.results import LayerInfo
from optimizer.targets.hardware import cpu_features

__all__ = ["FIXED_BATCHES", "OpenVino", "Session"]

_HINTS = {"fp32": "f32", "int8": "f32", "mixed": "f32", "bf16": "bf16"}
"""Precision hints. Always set, because the default runs FP32 graphs in BF16 on some CPUs."""
FIXED_BATCHES = (1,)
"""Default batch sizes that get their own compiled model; see `openvino_models`."""


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
        """See `Backend.device`; kernels depend on the CPU's instruction sets."""
        cpu = cpu_features()
        return {"kind": "cpu", "model": cpu.model, "flags": cpu.flags}

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """See `Backend.build`."""
        import openvino as ov

        facts = graph_facts(graph)
        hint = self._hint(settings)
        properties = config(hint, settings.threads)
        sizes = self._fixed_batches(settings) if facts.input_shape[0] is None else []
        core = ov.Core()
        progress.start(f"openvino {settings.precision}", total=2 + len(sizes))
        started = time.perf_counter()
        try:
            compiled = compile_model(core, core.read_model(graph), properties, facts.precision)
            progress.advance()
            annotate = Annotator(graph)
            layers = annotate(layers_of(compiled))
            fixed = {}
            for size in sizes:
                progress.advance(note=f"for batch {size}")
                model = core.read_model(graph)
                model.reshape([size, *model.inputs[0].partial_shape[1:]])
                fixed_model = compile_model(core, model, properties, facts.precision)
                _check_same_precisions(layers, annotate(layers_of(fixed_model)), size)
                fixed[size] = fixed_model.export_model().getvalue()
                del fixed_model
            output.write_bytes(pack(compiled.export_model().getvalue(), fixed))
        except RuntimeError as error:
            raise BuildError(
                f"OpenVINO could not compile {graph.name}: {first_line(error)}"
            ) from error
        seconds = time.perf_counter() - started
        progress.advance()
        progress.finish(f"{len(layers)} layers")
        notes = []
        if settings.options.get("storage_only"):
            notes.append(f"{settings.precision} storage, FP32 compute")
        if facts.precision in {"int8", "mixed"} and (note := saturation_note(graph, self.name)):
            notes.append(note)
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
        from optimizer.artifacts import read_manifest

        settings = read_manifest(engine).settings
        properties = config(settings["hint"], threads or settings.get("threads"), streams)
        models = Models(engine.read_bytes(), properties, device or "CPU")
        return [Session(models) for _ in range(streams)]

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """See `Backend.engine_settings`."""
        return {
            "hint": self._hint(settings),
            "fixed_batches": self._fixed_batches(settings),
            **(FUSED_SUMS if settings.precision in {"int8", "mixed"} else {}),
        }

    def _fixed_batches(self, settings: BuildSettings) -> list[int]:
        """Batch sizes that get their own compiled model, besides the model for any size."""
        requested = settings.options.get("fixed_batch")
        if settings.batch is not None:
            if requested:
                raise UsageError(
                    f"the graph has a fixed batch of {settings.batch}",
                    hint="remove --fixed-batch, or export with --batch dynamic",
                )
            return []
        sizes = sorted({int(size) for size in (FIXED_BATCHES if requested is None else requested)})
        if sizes and sizes[0] < 1:
            raise UsageError(
                f"--fixed-batch must be at least 1, not {sizes[0]}",
                hint="--fixed-batch 1,8, or none",
            )
        return sizes

    def _hint(self, settings: BuildSettings) -> str:
        precision = settings.precision
        if settings.options.get("storage_only"):
            return "f32"
        if precision not in _HINTS:
            raise UnsupportedPrecision(
                f"OpenVINO does not compute {precision.upper()} on a CPU: it would compute in FP32",
                hint="--engine tensorrt or tensorrt-rtx, or --storage-only for smaller files",
            )
        if precision == "bf16" and not cpu_features().bf16:
            raise UnsupportedPrecision(
                "this CPU has no BF16 instructions (AVX-512 BF16 or AMX): OpenVINO would compute in FP32",
                hint="--engine tensorrt or tensorrt-rtx, or --storage-only for smaller files",
            )
        return _HINTS[precision]


class Session:
    """An engine's models, each with one infer request.

    Args:
        models: The engine's models, or a graph compiled in memory.
    """

    def __init__(self, models: Models | Compiled) -> None:
        self._models: Models | Compiled | None = models
        self._requests: dict[Any, Any] = {}
        self.input = spec_of(models.any_batch.inputs[0])
        self.output = spec_of(models.any_batch.outputs[0])

    def run(self, batch: Array) -> Array:
        """See `Session.run`."""
        check_batch(batch, self.input)
        size = self.input.shape[0]
        if size is not None:
            return run_in_chunks(self._infer, batch, size)
        return self._infer(np.ascontiguousarray(batch))

    def _infer(self, batch: Array) -> Array:
        model = self._open_models().for_batch(len(batch))
        if model not in self._requests:
            self._requests[model] = model.create_infer_request()
        outputs = self._requests[model].infer([batch], share_inputs=True)
        return np.array(outputs[0], np.float32)

    def bind(self, batch: Array) -> _Bound:
        """See `Session.bind`; the batch must have the engine's own size."""
        check_batch(batch, self.input)
        model = self._open_models().for_batch(len(batch))
        return _Bound(model, np.ascontiguousarray(batch))

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers`."""
        return layers_of(self._open_models().any_batch)

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """See `TimesLayers.time_layers`; reopens the model regularly, because of `LayerClock`."""
        check_batch(batch, self.input)
        batch = np.ascontiguousarray(batch)
        spent: dict[str, list[float]] = {}
        for done in range(0, calls, CALLS_PER_COPY):
            compiled = self._open_models().reopen(len(batch), PERF_COUNT="YES")
            bound, clock = _Bound(compiled, batch), LayerClock()
            for call in range(WARMUP_CALLS + min(CALLS_PER_COPY, calls - done)):
                bound.enqueue()
                for name, seconds in clock.read(bound.request).items():
                    if call >= WARMUP_CALLS:
                        spent.setdefault(name, []).append(seconds)
        times = {name: max(0.0, 1e3 * float(np.median(values))) for name, values in spent.items()}
        moved = bytes_moved(compiled)
        layers = [
            layer.model_copy(
                update={"time_ms": times.pop(layer.name), "bytes": moved.get(layer.name)}
            )
            for layer in layers_of(compiled)
            if layer.name in times
        ]
        return layers + [
            LayerInfo(name=name, type="unknown", precision="unknown", time_ms=time_ms)
            for name, time_ms in times.items()
        ]

    def close(self) -> None:
        """See `Session.close`."""
        self._requests.clear()
        self._models = None

    def _open_models(self) -> Models | Compiled:
        assert self._models is not None, "the session is closed"
        return self._models


class _Bound:
    """One batch in shared memory, computed synchronously."""

    def __init__(self, compiled: Any, batch: Array) -> None:
        import openvino as ov

        self._batch = batch
        self.request = compiled.create_infer_request()
        self.request.set_input_tensor(ov.Tensor(batch, shared_memory=True))

    def upload(self) -> None:
        """Does nothing: the engine reads the batch in place."""

    def enqueue(self) -> None:
        """Compute synchronously."""
        self.request.infer(share_outputs=True)

    def wait(self) -> None:
        """Does nothing: `enqueue` is synchronous."""

    def download(self) -> None:
        """Does nothing: the outputs are in host memory."""

    def output(self) -> Array:
        """See `Bound.output`."""
        return np.asarray(self.request.get_output_tensor(0).data, np.float32)


def _check_same_precisions(
    layers: Sequence[LayerInfo], fixed: Sequence[LayerInfo], size: int
) -> None:
    """Check that the model for one size uses the audited precision in each layer with weights.

    Raises:
        BuildError: A layer differs; the message names it.
    """
    audited = {name: layer.precision for layer in layers for name in layer.torch_names}
    for layer in fixed:
        for name in layer.torch_names if layer.flops else ():
            if audited.get(name, layer.precision) != layer.precision:
                raise BuildError(
                    f"OpenVINO computes {name} in {layer.precision} for batch {size} and in "
                    f"{audited[name]} for other sizes",
                    hint="--fixed-batch none",
                )
