"""Runs graphs unoptimized, node by node, and returns intermediate tensors.

A separate module because it needs ONNX Runtime, unlike the rest of the package.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import GraphError
from optimizer.graphs.graph_limits import GraphLimits
from optimizer.graphs.onnx_files import open_onnx
from optimizer.targets.hardware import cpu_features

__all__ = ["BoundedSession", "chunks", "session_options", "tapped", "unoptimized_session"]

Array = NDArray[Any]


def session_options(threads: int | None) -> Any:
    """ONNX Runtime options for one inference at a time on the CPU.

    Args:
        threads: Threads per operator; ``None`` for one per physical core.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_features().physical_cores
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


class BoundedSession:
    """An ONNX Runtime session whose failures are errors of the graph, and that ends in time.

    Args:
        session: The library's session.
        name: Name of the graph, for messages.
        seconds: What one call may take at most; checked between the graph's nodes.
    """

    def __init__(self, session: Any, name: str, seconds: float) -> None:
        self._session = session
        self._name = name
        self._seconds = seconds

    def get_inputs(self) -> list[Any]:
        """The inputs, as `onnxruntime.NodeArg`."""
        return list(self._session.get_inputs())

    def get_outputs(self) -> list[Any]:
        """The outputs, as `onnxruntime.NodeArg`."""
        return list(self._session.get_outputs())

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Compute outputs by name; ``None`` means all, in order.

        Raises:
            GraphError: The graph cannot be computed on these inputs, or takes too long.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        timer = threading.Timer(self._seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return list(
                self._session.run(None if names is None else list(names), dict(feeds), options)
            )
        except Exception as error:
            if options.terminate:
                raise GraphError(
                    f"{self._name} has not computed a batch within {self._seconds:g} s",
                    hint="use a smaller --batch, or set RESNET_OPT_MAX_SECONDS to a longer time",
                ) from error
            raise _cannot(f"compute {self._name}", error) from error
        finally:
            timer.cancel()


def _cannot(what: str, error: Exception) -> GraphError:
    """The error for a failure of ONNX Runtime, whose message has the node's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return GraphError(
        f"ONNX Runtime cannot {what}: {reason}",
        hint="check that the graph computes what its nodes and shapes say; export it again",
    )


def unoptimized_session(graph: Path | bytes, threads: int | None = None) -> BoundedSession:
    """An ONNX Runtime session that executes a graph node by node, without optimization.

    Args:
        graph: The ONNX file, or its contents.
        threads: As in `session_options`.

    Raises:
        GraphError: ONNX Runtime does not accept the graph.
    """
    import onnxruntime as ort

    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A validation has several sessions open at once; spinning threads would take each other's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    name = graph.name if isinstance(graph, Path) else "the graph"
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _cannot(f"load {name}", error) from error
    return BoundedSession(session, name, GraphLimits.of_environment().seconds)


def tapped(graph: Path | Any, names: Sequence[str]) -> Callable[[Array], dict[str, Array]]:
    """A function that runs a graph unoptimized and returns the named tensors.

    Args:
        graph: The ONNX file, or an `onnx.ModelProto`, which gets further outputs.
        names: Tensors to return; the graph's input and outputs are allowed.

    Returns:
        Maps a batch of any size to ``{name: array}``.

    Raises:
        GraphError: The file cannot be read.
    """
    import onnx

    proto = open_onnx(graph).proto if isinstance(graph, Path) else graph
    constants = {tensor.name for tensor in proto.graph.initializer}
    source = next(value for value in proto.graph.input if value.name not in constants)
    fetched = [name for name in names if name != source.name]
    present = {value.name for value in proto.graph.output}
    for name in fetched:
        if name not in present:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = unoptimized_session(proto.SerializeToString())
    first = source.type.tensor_type.shape.dim[0]
    fixed = int(first.dim_value) if first.HasField("dim_value") else None

    def run(batch: Array) -> dict[str, Array]:
        values = dict(zip(fetched, compute(batch), strict=True))
        if source.name in names:
            values[source.name] = batch
        return values

    def compute(batch: Array) -> list[Array]:
        if fixed is None:
            return list(session.run(fetched, {source.name: batch}))
        parts = [
            [value[:count] for value in session.run(fetched, {source.name: chunk})]
            for chunk, count in chunks(batch, fixed)
        ]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    return run


def chunks(batch: Array, size: int) -> Iterator[tuple[Array, int]]:
    """Chunks of exactly ``size`` images, each with its number of real images.

    The last chunk is padded by repeating its last image.
    """
    for start in range(0, len(batch), size):
        chunk = batch[start : start + size]
        count = len(chunk)
        if count < size:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], size - count, axis=0)])
        yield np.ascontiguousarray(chunk), count
