"""Opens an engine file as a session: checks the device, then the library, then the file itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimizer.artifacts import Manifest, read_manifest
from optimizer.engines.cuda import (
    CudaDevice,
    check_device_exists,
    cuda_api,
    cuda_status,
    device_index,
    driver_version,
)
from optimizer.engines.opening import rebuild_command
from optimizer.engines.tensorrt import rtx
from optimizer.engines.tensorrt.capability import check_capability
from optimizer.engines.tensorrt.fitting import changes
from optimizer.engines.tensorrt.library import Library, load
from optimizer.engines.tensorrt.log import BuildLog, make_logger, start
from optimizer.engines.tensorrt.session import OpenEngine, TensorRtSession
from optimizer.errors import ArtifactError, MissingDevice, ResnetOptError

__all__ = ["carries_runtime", "deserialize", "open_parts", "open_sessions", "pick_device"]

_MEMORY = re.compile(r"out of memory|cudaErrorMemoryAllocation|OutOfMemory")
_REBUILD = "build it again with this version on this machine"


def open_sessions(
    library: Library,
    path: Path,
    *,
    device: str | None,
    options: Mapping[str, Any],
    streams: int = 1,
) -> list[TensorRtSession]:
    """Open an engine on a GPU, as sessions that each have an execution context and a CUDA stream.

    Raises:
        MissingLibrary, MissingDevice: This machine cannot run it.
        ArtifactError: The file is damaged, or built for another version or compute capability.
        UsageError: No such device or option.
        ResnetOptError: The GPU does not have enough memory.
    """
    opened = open_parts(library, path, device=device, options=options)
    sessions: list[TensorRtSession] = []
    try:
        for _ in range(streams):
            sessions.append(TensorRtSession(opened))  # noqa: PERF401 - earlier ones are closed on failure
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return sessions


def open_parts(
    library: Library, path: Path, *, device: str | None, options: Mapping[str, Any]
) -> OpenEngine:
    """Open an engine on a GPU, for a session that takes ownership of it.

    Raises:
        ResnetOptError: See `open_sessions`.
    """
    manifest = _manifest(path)
    runtime_options = rtx.RuntimeOptions.read(library, {**_recorded(path, manifest), **options})
    trt = load(library)
    gpu = pick_device(library, device)
    api = cuda_api()
    api.set_device(gpu.index)
    log = BuildLog()
    logger = make_logger(trt, log)
    runtime = start(library, trt.Runtime, logger, log)
    runtime.engine_host_code_allowed = carries_runtime(manifest)
    engine = deserialize(library, runtime, path, log, manifest)
    return _opened(library, trt, engine, runtime_options, (runtime, logger), log, gpu)


def _opened(
    library: Library,
    trt: Any,
    engine: Any,
    options: rtx.RuntimeOptions,
    keep_alive: tuple[Any, ...],
    log: BuildLog,
    gpu: CudaDevice,
) -> OpenEngine:
    common: dict[str, Any] = {
        "trt": trt,
        "engine": engine,
        "api": cuda_api(),
        "device": gpu.index,
        "keep_alive": keep_alive,
        "log": log,
    }
    if not library.portable:
        return OpenEngine(
            make_context=engine.create_execution_context, cuda_graph=options.cuda_graph, **common
        )
    runtime_cache = rtx.open_runtime_cache(engine, options)

    def context_maker(*, cuda_graph: bool) -> Callable[[], Any]:
        runtime_config = rtx.new_runtime_config(
            trt, engine, options, runtime_cache, cuda_graph=cuda_graph
        )
        return lambda: engine.create_execution_context(runtime_config)

    def save_cache() -> None:
        if runtime_cache is not None and options.runtime_cache is not None:
            rtx.save_runtime_cache(runtime_cache, options.runtime_cache)

    # TensorRT-RTX captures CUDA graphs itself; a captured context cannot be captured again or profiled.
    return OpenEngine(
        make_context=context_maker(cuda_graph=options.cuda_graph),
        make_timing_context=context_maker(cuda_graph=False),
        on_close=save_cache,
        **common,
    )


def pick_device(library: Library, name: str | None) -> CudaDevice:
    """The GPU to run on.

    Raises:
        MissingDevice: There is no such GPU, or the library does not run on it.
        UsageError: ``name`` is not the name of a device.
    """
    index = device_index(name)
    status = cuda_status()
    if status.fault is not None:
        raise MissingDevice(f"{library.title} needs a GPU to run: {status.fault}", hint=status.hint)
    check_device_exists(index, status.devices)
    check_capability(library, status.devices[index].capability)
    return status.devices[index]


def deserialize(
    library: Library, runtime: Any, path: Path, log: BuildLog, manifest: Manifest | None = None
) -> Any:
    """Read an engine file with a runtime of the library.

    Args:
        library: The library.
        runtime: Its runtime.
        path: The engine file.
        log: The log that the runtime's logger writes to.
        manifest: The engine's manifest, to report what has changed since the build.

    Raises:
        ArtifactError: The library rejects it.
        ResnetOptError: The GPU does not have enough memory.
    """
    position = log.position
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = log.reason_since(position, "no reason given")
        if _MEMORY.search(reason):
            raise ResnetOptError(
                f"the GPU has too little free memory to open {path.name}: {reason}",
                hint="free memory on the GPU (nvidia-smi lists its processes), or another --device",
            )
        differing = changes(manifest, driver_version(), cuda_status().driver)
        raise ArtifactError(
            f"{library.title} rejects {path.name}: {reason}"
            + (f" ({'; '.join(differing)})" if differing else ""),
            # Remove it first, else the build would reuse the file.
            hint=f"rm {path.name}; {rebuild_command(path, manifest)}"
            if manifest is not None
            else _REBUILD,
        )
    return engine


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except ArtifactError:
        if not path.is_file():
            raise
        return None  # an engine built by another tool: only the library can check it


def _recorded(path: Path, manifest: Manifest | None) -> dict[str, Any]:
    """The runtime options recorded when the engine was built."""
    options = manifest.settings.get("options", {}) if manifest is not None else {}
    names = ("cuda_graph", "specialization", "runtime_cache")
    recorded = {name: options[name] for name in names if name in options}
    if "runtime_cache" in recorded:
        # Only the file name: an untrusted manifest must not point to a file elsewhere.
        recorded["runtime_cache"] = path.with_name(Path(str(recorded["runtime_cache"])).name)
    return recorded


def carries_runtime(manifest: Manifest | None) -> bool:
    """Whether an engine contains its own runtime; only then may host code in the file run."""
    options = manifest.settings.get("options", {}) if manifest is not None else {}
    return bool(options.get("version_compatible"))
