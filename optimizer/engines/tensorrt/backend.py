"""The backends ``tensorrt`` and ``tensorrt-rtx``: one code path, configured by a `Library`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.engines.cuda import CudaDevice, cuda_status, driver_version
from optimizer.engines.protocol import Availability, BuildSettings, Built
from optimizer.engines.tensorrt.capability import (
    check_capability,
    check_high_precision,
    check_precision,
    parse_targets,
    sm_name,
)
from optimizer.engines.tensorrt.lean import check_lean_runtime
from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, Library, find, load
from optimizer.engines.tensorrt.options import Options, check_version, read_options
from optimizer.errors import GraphError, MissingDevice, UsageError
from optimizer.progress import Progress

if TYPE_CHECKING:
    from optimizer.artifacts import Manifest
    from optimizer.engines.tensorrt.graph_check import CheckedGraph
    from optimizer.engines.tensorrt.session import TensorRtSession

__all__ = ["TensorRt", "TensorRtRtx"]


class TensorRt:
    """The ``tensorrt`` backend: TensorRT 10.12 and later, including 11."""

    library: Library = TENSORRT
    name = TENSORRT.name
    suffix = ".plan"
    libraries = TENSORRT.distributions

    def availability(self) -> Availability:
        """See `Backend.availability`."""
        installed = find(self.library)
        if installed.module is None:
            return Availability(False, False, str(installed.fault), installed.hint)
        title = f"{self.library.title} {installed.version}"
        status = cuda_status()
        builds_anywhere = self.library.portable
        if status.fault is not None:
            return Availability(builds_anywhere, False, f"{title}; {status.fault}", status.hint)
        gpus, error = self._supported_gpus(status.devices)
        if not gpus:
            return Availability(builds_anywhere, False, f"{title}; {error.message}", error.hint)
        # TensorRT builds on the first GPU, whichever GPU runs the engine later.
        builds = builds_anywhere or gpus[0].index == 0
        where = f"{gpus[0].name} ({gpus[0].sm})"
        if gpus[0].index:
            where += f", --device cuda:{gpus[0].index}"
        return Availability(
            builds, True, f"{title} on {where}, CUDA {status.driver}, {status.package}"
        )

    def _supported_gpus(
        self, devices: Sequence[CudaDevice]
    ) -> tuple[list[CudaDevice], MissingDevice]:
        """The GPUs that the library supports, and the error for the first one it does not."""
        supported, errors = [], []
        for device in devices:
            try:
                check_capability(self.library, device.capability)
                supported.append(device)
            except MissingDevice as error:
                errors.append(error)
        return supported, next(iter(errors), MissingDevice("the driver reports no GPU"))

    def device(self) -> dict[str, Any]:
        """See `Backend.device`; a TensorRT engine is specific to one GPU model."""
        status = cuda_status()
        if self.library.portable or not status.devices:
            return {"kind": "gpu"}
        gpu = status.devices[0]
        # The driver's CUDA major version is part of it: an engine does not run under an older one.
        cuda = (status.driver or "").partition(".")[0]
        facts = {"name": gpu.name, "compute_capability": gpu.sm, "cuda": cuda}
        return {"kind": "gpu", **{name: value for name, value in facts.items() if value}}

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """The settings that this backend adds to the manifest; checked before a build starts.

        Raises:
            UnsupportedPrecision: A target does not support this precision.
            UsageError: The library does not have an option or a target.
            MissingDevice: An option needs a driver, and none is installed.
            MissingLibrary: An option needs a part of the library that is not installed.
        """
        options = read_options(self.library, settings)
        version = find(self.library).version
        check_version(self.library, options, version)
        if options.version_compatible:
            check_lean_runtime(self.library, version)
        targets = self._targets(settings)
        check_precision(
            self.library, settings.precision, targets, storage_only=options.storage_only
        )
        self._gpu_to_build_on(options)
        return {"tensorrt_options": asdict(options), "capabilities": [sm_name(t) for t in targets]}

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """See `Backend.build`.

        Raises:
            GraphError: The graph is damaged, or TensorRT cannot compile it.
            UnsupportedPrecision: A target does not support the precision.
            UsageError: An option, a target or a profile is invalid.
            MissingLibrary, MissingDevice: This machine cannot compile it.
            BuildError: The library failed.
        """
        from optimizer.engines.tensorrt.compiling import BuildPlan, compile_engine
        from optimizer.engines.tensorrt.graph_check import check_graph
        from optimizer.engines.tensorrt.profiles import batch_profiles

        options = read_options(self.library, settings)
        targets = self._targets(settings)
        notes = check_precision(
            self.library, settings.precision, targets, storage_only=options.storage_only
        )
        checked = check_graph(graph)
        check_graph_precision(checked, settings.precision)
        check_high_precision(self.library, checked.high_precisions, targets)
        profiles = batch_profiles(checked, settings, options)
        trt = load(self.library)
        gpu = self._gpu_to_build_on(options)
        plan = BuildPlan(
            library=self.library,
            graph=checked,
            settings=settings,
            options=options,
            targets=targets,
            profiles=profiles,
            device=f"{gpu.name}-{gpu.sm}" if gpu else "no-gpu",
            notes=notes + self._note_defaults(settings, checked, targets, profiles),
        )
        built = compile_engine(trt, plan, output, progress)
        return replace(built, machine=_machine(gpu))

    def check_machine(self, path: Path, manifest: Manifest, device: str | None) -> None:
        """See `ChecksMachine.check_machine`."""
        from optimizer.engines.tensorrt.engine_opening import pick_device
        from optimizer.engines.tensorrt.fitting import check_has_weights, check_machine

        check_machine(
            self.library, path, manifest, pick_device(self.library, device), cuda_status()
        )
        check_has_weights(path, manifest)

    def load(
        self,
        engine: Path,
        *,
        threads: int | None = None,  # noqa: ARG002 - not applicable to a GPU engine
        device: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TensorRtSession:
        """See `Backend.load`.

        Args:
            engine: The engine file.
            threads: Ignored.
            device: The GPU, such as ``cuda:1``; ``None`` for the first one.
            options: ``cuda_graph``, and for TensorRT-RTX ``runtime_cache`` and
                ``specialization`` (see `RuntimeOptions`).

        Raises:
            MissingLibrary, MissingDevice: This machine cannot run it.
            ArtifactError: The library rejects the file.
        """
        from optimizer.engines.tensorrt.engine_opening import open_sessions

        return open_sessions(self.library, engine, device=device, options=options or {})[0]

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,  # noqa: ARG002 - not applicable to a GPU engine
        device: str | None = None,
    ) -> list[TensorRtSession]:
        """See `ConcurrentBackend.load_streams`; each session has its own CUDA stream."""
        from optimizer.engines.tensorrt.engine_opening import open_sessions

        return open_sessions(self.library, engine, device=device, options={}, streams=streams)

    def _targets(self, settings: BuildSettings) -> tuple[int, ...]:
        """The compute capabilities to compile for, as far as known without the graph."""
        requested = parse_targets(self.library, settings.targets)
        if self.library.portable:
            # An FP8 engine for the default targets builds, but fails on every GPU below sm89.
            return requested or ((89, 120) if settings.precision == "fp8" else ())
        devices = cuda_status().devices
        present = tuple(d.capability[0] * 10 + d.capability[1] for d in devices[:1])
        if requested and present and requested != present:
            raise UsageError(
                f"TensorRT compiles for this machine's GPU, {sm_name(present[0])}, not for "
                f"{', '.join(map(sm_name, requested))}",
                hint="build on that GPU, or --engine tensorrt-rtx",
            )
        return present or requested

    def _gpu_to_build_on(self, options: Options) -> CudaDevice | None:
        status = cuda_status()
        needs_gpu = not self.library.portable
        reason = f"{self.library.title} times kernels on the GPU it builds for"
        if self.library.portable and (options.refittable or options.strip_weights):
            needs_gpu = True
            reason = f"{self.library.title} needs the driver for refittable or stripped engines"
        if needs_gpu and status.fault is not None:
            raise MissingDevice(f"{reason}: {status.fault}", hint=status.hint)
        return status.devices[0] if status.devices else None

    def _note_defaults(
        self,
        settings: BuildSettings,
        graph: CheckedGraph,
        targets: tuple[int, ...],
        profiles: list[tuple[int, int, int]],
    ) -> list[str]:
        notes = []
        if self.library.portable and not settings.targets:
            names = ", ".join(map(sm_name, targets or self.library.default_capabilities))
            notes.append(f"no target given: compiled for {names} and later")
        if graph.batch is None and not settings.profile and settings.batch is None:
            notes.append(f"no profile given: batches {':'.join(map(str, profiles[0]))}")
        return notes


class TensorRtRtx(TensorRt):
    """The ``tensorrt-rtx`` backend: compiles ahead of time, without a GPU."""

    library = TENSORRT_RTX
    name = TENSORRT_RTX.name
    suffix = ".rtx"
    libraries = TENSORRT_RTX.distributions


def _machine(gpu: CudaDevice | None) -> dict[str, str]:
    """What an engine was built on; compared when it is opened on another machine."""
    if gpu is None:
        return {}
    facts = {
        "gpu": gpu.name,
        "compute_capability": gpu.sm,
        "driver": driver_version(),
        "cuda": cuda_status().driver,
    }
    return {name: value for name, value in facts.items() if value is not None}


def check_graph_precision(graph: CheckedGraph, precision: str) -> None:
    """Check that a graph has the precision that its engine is to be labelled with.

    Since TensorRT 11, no flag turns an FP32 graph into an FP16 engine; a tool that still sets one
    builds FP32 and reports success.

    Raises:
        GraphError: The graph has another precision.
    """
    present = graph.precisions
    quantized = present & {"int8", "fp8"}
    if precision == "mixed" or precision in (quantized or present):
        return
    names = ", ".join(sorted(present)) or "no weights"
    raise GraphError(
        f"{graph.path.name} has {names}, not {precision}: the graph defines the precision",
        hint=f"resnet-opt quantize {graph.path.name} --precision {precision} --target tensorrt",
    )
