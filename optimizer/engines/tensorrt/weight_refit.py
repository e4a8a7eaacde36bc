"""New weights for an engine built ``refittable``, or the original ones if built ``strip_weights``.

The refit itself needs a GPU: the library writes the weights into an open engine. Whatever can be
checked from the manifest is checked first.
"""

from __future__ import annotations

from pathlib import Path

from optimizer.artifacts import Manifest, library_versions, write_atomically
from optimizer.engines.cuda import cuda_api
from optimizer.engines.opening import rebuild_command
from optimizer.engines.tensorrt.engine_opening import carries_runtime, deserialize, pick_device
from optimizer.engines.tensorrt.fitting import library_misfits
from optimizer.engines.tensorrt.graph_check import check_graph
from optimizer.engines.tensorrt.library import Library, load, refit_flag
from optimizer.engines.tensorrt.log import BuildLog, make_logger, start
from optimizer.errors import ArtifactError, GraphError

__all__ = ["check_refittable", "refit_engine", "stays_refittable"]


def check_refittable(library: Library, engine_file: Path, manifest: Manifest) -> None:
    """Check from its manifest that an engine can be refitted here; needs no GPU.

    Raises:
        ArtifactError: It was not built to be refitted, or was built by another library version.
        MissingLibrary: The library is not installed.
    """
    options = manifest.settings.get("options") or {}
    if not (options.get("refittable") or options.get("strip_weights")):
        command = rebuild_command(engine_file, manifest)
        raise ArtifactError(
            f"{engine_file.name} was not built to be refitted", hint=f"{command} --refittable"
        )
    load(library)
    # A version-compatible engine of another version runs on its lean runtime, which cannot refit.
    exactly = {**manifest.settings, "options": {**options, "version_compatible": False}}
    misfits = library_misfits(
        library,
        manifest.model_copy(update={"settings": exactly}),
        library_versions(*library.distributions),
    )
    if misfits:
        raise ArtifactError(
            f"{engine_file.name} does not fit this machine: {'; '.join(misfits)}",
            hint=rebuild_command(engine_file, manifest),
        )


def stays_refittable(library: Library, manifest: Manifest) -> bool:
    """Whether an engine can be refitted again after its first refit.

    A serialized engine stays refittable only if a flag requests it, which TensorRT 10.12 lacks.
    """
    requested = bool((manifest.settings.get("options") or {}).get("refittable"))
    return requested and refit_flag(load(library)) is not None


def refit_engine(
    library: Library,
    engine_file: Path,
    graph: Path,
    output: Path,
    *,
    manifest: Manifest,
    device: str | None = None,
) -> None:
    """Put the weights of ``graph`` into an engine and write it to ``output``.

    Args:
        library: The library that built the engine.
        engine_file: The engine; it is not changed.
        graph: The network that the engine was built from, with the new weights.
        output: The new engine, including its weights.
        manifest: The engine's manifest.
        device: The GPU to use.

    Raises:
        GraphError: The graph is damaged, or is a different network.
        ArtifactError: The engine cannot be opened, or was not built to be refitted.
        MissingLibrary, MissingDevice: This machine cannot do it.
    """
    check_graph(graph)
    trt = load(library)
    gpu = pick_device(library, device)
    cuda_api().set_device(gpu.index)
    log = BuildLog()
    logger = make_logger(trt, log)
    runtime = start(library, trt.Runtime, logger, log)
    runtime.engine_host_code_allowed = carries_runtime(manifest)
    engine = deserialize(library, runtime, engine_file, log, manifest)
    if not engine.refittable:
        raise ArtifactError(
            f"{engine_file.name} was not built to be refitted",
            hint="build it with the option refittable or strip_weights",
        )
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    accepted = parser_refitter.refit_from_file(str(graph))
    if not accepted or not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:3])
        reason = f"weights missing: {missing}" if missing else log.reason("no reason given")
        raise GraphError(
            f"{graph.name} does not fit {engine_file.name}: {reason}",
            hint="use a graph of the same network, in the same precision",
        )
    serialization_config = engine.create_serialization_config()
    serialization_config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if stays_refittable(library, manifest):
        serialization_config.set_flag(refit_flag(trt))
    with write_atomically(output) as temporary:
        temporary.write_bytes(engine.serialize_with_config(serialization_config))
