"""ONNX Runtime: engines for the CPU or a GPU provider, and graphs executed exactly as written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts import Manifest, check_space, library_versions, scratch_folder
from optimizer.engines.batching import check_batch, run_in_chunks
from optimizer.engines.layer_annotation import annotate
from optimizer.engines.onnxruntime_layers import layers_of, timed_by_profile
from optimizer.engines.protocol import (
    Array,
    Availability,
    BuildSettings,
    Built,
    Opening,
)
from optimizer.engines.protocol import Session as AnySession
from optimizer.engines.providers import Choice, read_choice
from optimizer.engines.providers.session import tensor_spec
from optimizer.engines.providers.settings import options_from_settings, with_cache
from optimizer.engines.saturation import saturation_note
from optimizer.errors import BuildError, UnsupportedPrecision, UsageError
from optimizer.graphs.taps import session_options, unoptimized_session
from optimizer.progress import Progress
from optimizer.results import LayerInfo
from optimizer.targets.hardware import cpu_features

__all__ = ["OnnxRuntime", "as_written"]

PROVIDERS = ["CPUExecutionProvider"]
_WARMUP_CALLS = 3
"""Calls of a profiled session that are not measured: they allocate and fill caches."""


class OnnxRuntime:
    """The ``onnxruntime`` backend.

    A CPU engine is the model after all graph optimizations. An engine for a GPU provider is the
    graph itself with the provider's options; it is optimized, partitioned and compiled by the
    libraries of the machine that opens it.
    """

    name = "onnxruntime"
    suffix = ".ort.onnx"
    libraries: tuple[str, ...] = ("onnxruntime-gpu", "onnxruntime")

    def availability(self) -> Availability:
        """See `Backend.availability`."""
        from importlib import metadata

        for name in self.libraries:
            try:
                return Availability(True, True, f"{name} {metadata.version(name)}, provider CPU")
            except metadata.PackageNotFoundError:
                continue
        return Availability(
            False, False, "onnxruntime is not installed", "pip install onnxruntime-gpu"
        )

    def device(self) -> dict[str, Any]:
        """See `Backend.device`; layouts depend on the CPU's vector width."""
        cpu = cpu_features()
        return {"kind": "cpu", "model": cpu.model, "flags": cpu.flags}

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """See `Backend.build`."""
        import onnxruntime as ort

        self.engine_settings(settings)
        options = session_options(settings.threads)
        choice = read_choice(settings.options)
        if choice.provider.on_gpu:
            from optimizer.engines.providers.provider_build import build_with_provider

            return build_with_provider(graph, output, settings, choice, options, progress)
        progress.start(f"onnxruntime {settings.precision}", total=2)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(output)
        # By default the suffix decides, and .ort is another format.
        options.add_session_config_entry("session.save_model_format", "ONNX")
        started = time.perf_counter()
        try:
            ort.InferenceSession(graph, options, providers=PROVIDERS)
        except Exception as error:
            check_space(output.parent, graph.stat().st_size)
            line = str(error).strip().splitlines()[0]
            raise BuildError(f"ONNX Runtime could not compile {graph.name}: {line}") from error
        seconds = time.perf_counter() - started
        progress.advance(note="reading the layers")
        layers = annotate(layers_of(output), graph)
        progress.advance()
        progress.finish(f"{len(layers)} layers")
        notes = []
        if settings.options.get("storage_only"):
            notes.append(f"{settings.precision} storage, FP32 compute")
        if settings.precision in {"int8", "mixed"} and (note := saturation_note(graph, self.name)):
            notes.append(note)
        return Built(layers=layers, seconds=seconds, notes=notes)

    def check_machine(
        self,
        path: Path,
        manifest: Manifest,
        device: str | None,  # noqa: ARG002 - the provider checks it on opening
    ) -> None:
        """See `ChecksMachine.check_machine`; GPU providers compile on opening, so any CPU fits."""
        from optimizer.engines.opening import check_same_device, check_versions

        check_versions(self, path, manifest)
        if not read_choice(manifest.settings.get("options") or {}).provider.on_gpu:
            check_same_device(self, path, manifest)

    def load(
        self,
        engine: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
    ) -> AnySession:
        """See `Backend.load`; ``device`` applies to GPU providers.

        Raises:
            MissingLibrary, MissingDevice: The engine's provider cannot be used here.
        """
        return self.load_streams(engine, streams=1, threads=threads, device=device)[0]

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[AnySession]:
        """See `ConcurrentBackend.load_streams`; ``device`` applies to GPU providers.

        A session has one thread pool, and every calling thread computes too, so the pool is made
        smaller: pool and callers together are the requested number of threads.

        Raises:
            MissingLibrary, MissingDevice: The engine's provider cannot be used here.
            UsageError: GPU providers compute only one batch at a time.
        """
        return self.load_with(engine, Opening(), streams=streams, threads=threads, device=device)

    def load_with(
        self,
        engine: Path,
        opening: Opening,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[AnySession]:
        """See `ChoosesOpening.load_with`; providers that compile store engines in ``opening.cache``."""
        import onnxruntime as ort

        from optimizer.artifacts import read_manifest

        settings = read_manifest(engine).settings
        count = threads or settings.get("threads")
        choice = read_choice(settings.get("options") or {})
        if choice.provider.on_gpu:
            from optimizer.engines.providers.provider_build import load_with_provider

            if streams > 1:
                raise UsageError(
                    f"provider {choice.provider.name} computes one batch at a time, not {streams}",
                    hint="--streams 1",
                )
            if opening.cache is not None:
                choice = with_cache(choice, opening.cache / engine.name)
            return [load_with_provider(engine, settings, choice, session_options(count), device)]
        pool = max(1, (count or cpu_features().physical_cores) - streams + 1)

        def open_session(profile: Path | None = None) -> Any:
            options = session_options(pool)
            # The file is already optimized; optimizing again would only delay the start.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            if profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = str(profile)
            return ort.InferenceSession(engine, options, providers=PROVIDERS)

        shared = open_session()
        return [Session(shared, engine, open_session) for _ in range(streams)]

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """See `Backend.engine_settings`.

        Raises:
            UnsupportedPrecision: The provider does not compute this precision.
            UsageError: Unknown provider, or an option that it or this backend does not have.
            MissingLibrary, MissingDevice: The provider cannot be used here or on this GPU.
        """
        choice = read_choice(settings.options)
        options_from_settings(choice.provider, settings)
        if settings.precision not in choice.provider.computed and not settings.options.get(
            "storage_only"
        ):
            raise _not_computed(choice, settings.precision)
        if not choice.provider.on_gpu:
            return {"providers": PROVIDERS}
        from optimizer.engines.cuda import cuda_status
        from optimizer.engines.providers.status import check_computes, check_usable

        index = check_usable(choice.provider, None)
        check_computes(
            choice.provider,
            settings.precision,
            cuda_status().devices[index].capability,
            storage_only=bool(settings.options.get("storage_only")),
        )
        return {
            "providers": [choice.provider.registered, *PROVIDERS],
            "provider_libraries": library_versions(*choice.provider.distributions),
        }


def _not_computed(choice: Choice, precision: str) -> UnsupportedPrecision:
    if not choice.provider.on_gpu:
        return UnsupportedPrecision(
            f"ONNX Runtime does not compute {precision.upper()} on a CPU: it would compute in FP32",
            hint="--engine tensorrt or tensorrt-rtx, or --storage-only for smaller files",
        )
    return UnsupportedPrecision(
        f"ONNX Runtime's provider {choice.provider.name} does not compute {precision.upper()}: its "
        "convolutions are FP32 and FP16 only",
        hint="--provider tensorrt or nv-tensorrt-rtx, or --storage-only for smaller files",
    )


class Session:
    """An inference session.

    Args:
        session: The library's session.
        engine: The engine file; ``None`` for a graph executed as written.
        reopen: Opens the engine again with profiling; takes the prefix of the profile's file.
    """

    def __init__(
        self,
        session: Any,
        engine: Path | None = None,
        reopen: Callable[[Path], Any] | None = None,
    ) -> None:
        self._session = session
        self._engine = engine
        self._reopen = reopen
        self.input = tensor_spec(session.get_inputs()[0])
        self.output = tensor_spec(session.get_outputs()[0])

    def run(self, batch: Array) -> Array:
        """See `Session.run`."""
        check_batch(batch, self.input)
        size = self.input.shape[0]
        if size is not None:
            return run_in_chunks(self._infer, batch, size)
        return self._infer(np.ascontiguousarray(batch))

    def _infer(self, batch: Array) -> Array:
        (outputs,) = self._session.run([self.output.name], {self.input.name: batch})
        return np.asarray(outputs, np.float32)

    def bind(self, batch: Array) -> _Bound:
        """See `Session.bind`; the batch must have the engine's own size."""
        check_batch(batch, self.input)
        return _Bound(self._session, self.input.name, self.output.name, np.ascontiguousarray(batch))

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers`."""
        return layers_of(self._engine) if self._engine is not None else []

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """See `TimesLayers.time_layers`; profiles a second session on the same file."""
        if self._engine is None or self._reopen is None:
            raise UsageError(
                "a graph that is executed as written cannot be timed by layer",
                hint="build an engine from it: resnet-opt build --engine onnxruntime",
            )
        check_batch(batch, self.input)
        with scratch_folder("profile") as folder:
            session = self._reopen(folder / "layers")
            bound = _Bound(session, self.input.name, self.output.name, np.ascontiguousarray(batch))
            for _ in range(_WARMUP_CALLS + calls):
                bound.enqueue()
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return timed_by_profile(self._engine, events, calls)

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


class _Bound:
    """One batch bound with `IOBinding`: no copy or allocation in the timed call."""

    def __init__(self, session: Any, input_name: str, output_name: str, batch: Array) -> None:
        import onnxruntime as ort

        self._session = session
        self._binding = session.io_binding()
        self._input = ort.OrtValue.ortvalue_from_numpy(batch)
        self._binding.bind_ortvalue_input(input_name, self._input)
        shape = [len(batch), *session.get_outputs()[0].shape[1:]]
        self._output = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
        self._binding.bind_ortvalue_output(output_name, self._output)

    def upload(self) -> None:
        """Does nothing: the engine reads the batch in place."""

    def enqueue(self) -> None:
        """Compute synchronously."""
        self._session.run_with_iobinding(self._binding)

    def wait(self) -> None:
        """Does nothing: `enqueue` is synchronous."""

    def download(self) -> None:
        """Does nothing: the outputs are in host memory."""

    def output(self) -> Array:
        """See `Bound.output`."""
        return np.asarray(self._output.numpy(), np.float32)


def as_written(graph: Path | bytes, *, threads: int | None = None) -> Session:
    """Open a graph, or the contents of a file, for execution node by node without optimizations.

    This is the reference between PyTorch and an engine: it computes the Q/DQ nodes of an INT8 graph
    one by one in FP32, so its error is that of quantization, not of an engine.
    """
    return Session(unoptimized_session(graph, threads))
