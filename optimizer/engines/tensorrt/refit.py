"""New weights for an engine that was built ``refittable`` or ``strip_weights``.

Needs a GPU: the library writes the weights into an open engine.
"""

from __future__ import annotations

from pathlib import Path

from optimizer.artifacts import write_atomically
from optimizer.engines.cuda import cuda_api
from optimizer.engines.tensorrt.graph_check import check_graph
from optimizer.engines.tensorrt.library import Library, load
from optimizer.engines.tensorrt.log import BuildLog, make_logger, start
from optimizer.engines.tensorrt.opening import deserialize, pick_device
from optimizer.errors import ArtifactError, GraphError

__all__ = ["refit_engine"]


def refit_engine(
    library: Library, engine_file: Path, graph: Path, output: Path, *, device: str | None = None
) -> None:
    """Put the weights of ``graph`` into an engine and write it to ``output``.

    Args:
        library: Which library built the engine.
        engine_file: The engine; it is not changed.
        graph: The same network as the engine was built from, with other weights.
        output: The new engine, with its weights inside.
        device: Which GPU does it.

    Raises:
        GraphError: The graph is damaged, or is another network.
        ArtifactError: The engine cannot be opened, or was not built to be refitted.
        MissingLibrary, MissingDevice: Nothing here can do it.
    """
    check_graph(graph)
    trt = load(library)
    cuda_api().set_device(pick_device(library, device).index)
    log = BuildLog()
    logger = make_logger(trt, log)
    runtime = start(library, trt.Runtime, logger, log)
    engine = deserialize(library, runtime, engine_file, log)
    if not engine.refittable:
        raise ArtifactError(
            f"{engine_file.name} was not built to be refitted",
            mend="build it with the option refittable or strip_weights",
        )
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    accepted = parser_refitter.refit_from_file(str(graph))
    if not accepted or not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:3])
        reason = f"weights missing: {missing}" if missing else log.reason("no reason given")
        raise GraphError(
            f"{graph.name} does not fit {engine_file.name}: {reason}",
            mend="give the graph of the same network, in the same precision",
        )
    serialization_config = engine.create_serialization_config()
    serialization_config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    with write_atomically(output) as temporary:
        temporary.write_bytes(engine.serialize_with_config(serialization_config))
