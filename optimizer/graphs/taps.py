"""Runs graphs unoptimized, node by node, and returns intermediate tensors.

A separate module because it needs ONNX Runtime, unlike the rest of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.graphs.onnx_files import open_onnx
from optimizer.targets.hardware import cpu_features

__all__ = ["chunks", "session_options", "tapped", "unoptimized_session"]

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


def unoptimized_session(graph: Path | bytes, threads: int | None = None) -> Any:
    """An ONNX Runtime session that executes a graph node by node, without optimization.

    Args:
        graph: The ONNX file, or its contents.
        threads: As in `session_options`.
    """
    import onnxruntime as ort

    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A validation has several sessions open at once; spinning threads would take each other's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def tapped(graph: Path, names: Sequence[str]) -> Callable[[Array], dict[str, Array]]:
    """A function that runs a graph unoptimized and returns the named tensors.

    Args:
        graph: The ONNX file.
        names: Tensors to return; the graph's input and outputs are allowed.

    Returns:
        Maps a batch of any size to ``{name: array}``.

    Raises:
        GraphError: The file cannot be read.
    """
    import onnx

    proto = open_onnx(graph).proto
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
