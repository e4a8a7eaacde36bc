"""The two backends, ``tensorrt`` and ``tensorrt-rtx``: one code path, two sets of facts."""

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
    """The ``tensorrt`` backend: TensorRT 10.12 and later, and 11."""

    library: Library = TENSORRT
    name = TENSORRT.name
    suffix = ".plan"
    libraries = TENSORRT.distributions

    def availability(self) -> Availability:
        """See `Backend.availability`."""
        found = find(self.library)
        if found.module is None:
            return Availability(False, False, str(found.fault), found.hint)
        title = f"{self.library.title} {found.version}"
        status = cuda_status()
        builds_anywhere = self.library.portable
        if status.fault is not None:
            return Availability(builds_anywhere, False, f"{title}; {status.fault}", status.hint)
        gpus, refused = self._usable(status.devices)
        if not gpus:
            return Availability(builds_anywhere, False, f"{title}; {refused.message}", refused.hint)
        # TensorRT builds on the first GPU, whichever runs the engine in the end.
        builds = builds_anywhere or gpus[0].index == 0
        where = f"{gpus[0].name} ({gpus[0].sm})"
        if gpus[0].index:
            where += f", --device cuda:{gpus[0].index}"
        return Availability(
            builds, True, f"{title} on {where}, CUDA {status.driver}, {status.package}"
        )

    def _usable(self, devices: Sequence[CudaDevice]) -> tuple[list[CudaDevice], MissingDevice]:
        """The GPUs that the library runs on, and why it does not on the first that it refuses."""
        usable, refused = [], []
        for device in devices:
            try:
                check_capability(self.library, device.capability)
                usable.append(device)
            except MissingDevice as error:
                refused.append(error)
        return usable, next(iter(refused), MissingDevice("the driver shows no GPU"))

    def device(self) -> dict[str, Any]:
        """See `Backend.device`; an engine of TensorRT belongs to one GPU model."""
        status = cuda_status()
        if self.library.portable or not status.devices:
            return {"kind": "gpu"}
        gpu = status.devices[0]
        # The driver's CUDA belongs to it: an engine does not run under a whole version less.
        cuda = (status.driver or "").partition(".")[0]
        known = {"name": gpu.name, "compute_capability": gpu.sm, "cuda": cuda}
        return {"kind": "gpu", **{name: value for name, value in known.items() if value}}

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """What this backend adds to the manifest's settings; checked before a build is started.

        Raises:
            UnsupportedPrecision: A target does not compute this precision.
            UsageError: An option or a target the library does not have.
            MissingDevice: An option needs a driver, and there is none.
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
            GraphError: The graph is damaged, or not what TensorRT compiles.
            UnsupportedPrecision: A target does not compute the precision.
            UsageError: An option, a target or a profile is wrong.
            MissingLibrary, MissingDevice: Nothing here can compile it.
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
        check_carried(checked, settings.precision)
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
        threads: int | None = None,  # noqa: ARG002 - a GPU engine has no use for it
        device: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TensorRtSession:
        """See `Backend.load`.

        Args:
            engine: The engine file.
            threads: Of no use here.
            device: Which GPU, ``cuda:1``; ``None`` for the first.
            options: ``cuda_graph``, and for TensorRT-RTX ``runtime_cache`` and
                ``specialization`` (see `RuntimeOptions`).

        Raises:
            MissingLibrary, MissingDevice: Nothing here can run it.
            ArtifactError: The library refuses the file.
        """
        from optimizer.engines.tensorrt.engine_opening import open_sessions

        return open_sessions(self.library, engine, device=device, options=options or {})[0]

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,  # noqa: ARG002 - a GPU engine has no use for it
        device: str | None = None,
    ) -> list[TensorRtSession]:
        """See `ConcurrentBackend.load_streams`; each has a CUDA stream of its own."""
        from optimizer.engines.tensorrt.engine_opening import open_sessions

        return open_sessions(self.library, engine, device=device, options={}, streams=streams)

    def _targets(self, settings: BuildSettings) -> tuple[int, ...]:
        """The compute capabilities to compile for, as far as they are known without the graph."""
        asked = parse_targets(self.library, settings.targets)
        if self.library.portable:
            # An FP8 engine of the default targets builds, and then fails on all below sm89.
            return asked or ((89, 120) if settings.precision == "fp8" else ())
        devices = cuda_status().devices
        here = tuple(d.capability[0] * 10 + d.capability[1] for d in devices[:1])
        if asked and here and asked != here:
            raise UsageError(
                f"TensorRT compiles for the GPU at hand, {sm_name(here[0])}, not for "
                f"{', '.join(map(sm_name, asked))}",
                hint="build on that GPU, or --engine tensorrt-rtx",
            )
        return here or asked

    def _gpu_to_build_on(self, options: Options) -> CudaDevice | None:
        status = cuda_status()
        needs_gpu = not self.library.portable
        reason = f"{self.library.title} measures kernels on the GPU it builds for"
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
            notes.append(f"no target was named: compiled for {names} and later")
        if graph.batch is None and not settings.profile and settings.batch is None:
            notes.append(f"no profile was given: batches {':'.join(map(str, profiles[0]))}")
        return notes


class TensorRtRtx(TensorRt):
    """The ``tensorrt-rtx`` backend: compiles ahead of time, without a GPU."""

    library = TENSORRT_RTX
    name = TENSORRT_RTX.name
    suffix = ".rtx"
    libraries = TENSORRT_RTX.distributions


def _machine(gpu: CudaDevice | None) -> dict[str, str]:
    """What an engine was built on, for the day on which it is opened elsewhere."""
    if gpu is None:
        return {}
    known = {
        "gpu": gpu.name,
        "compute_capability": gpu.sm,
        "driver": driver_version(),
        "cuda": cuda_status().driver,
    }
    return {name: value for name, value in known.items() if value is not None}


def check_carried(graph: CheckedGraph, precision: str) -> None:
    """Refuse to call an engine by a precision that its graph does not carry.

    Since TensorRT 11 no flag makes an FP16 engine of an FP32 graph; a tool that still sets one
    builds FP32 and reports success.

    Raises:
        GraphError: The graph carries something else.
    """
    carried = graph.precisions
    quantized = carried & {"int8", "fp8"}
    if precision == "mixed" or precision in (quantized or carried):
        return
    words = ", ".join(sorted(carried)) or "no weights"
    raise GraphError(
        f"{graph.path.name} carries {words}, not {precision}: TensorRT computes what it says",
        hint=f"resnet-opt quantize {graph.path.name} --precision {precision} --target tensorrt",
    )
