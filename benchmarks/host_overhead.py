"""Measures the Python overhead per call at batch 1, on a simulated GPU whose work takes no time.

    python benchmarks/host_overhead.py [--calls 20000] [--write]

The session and the layer over ``cuda.bindings.runtime`` are real; only the functions below them do
nothing. So the result is the overhead of this package alone. The time of the CUDA and TensorRT calls is
extra and cannot be measured without a GPU (``make test-gpu`` measures both). With ``--write`` the table
goes to ``reports/tensorrt/host_overhead.md``.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from readme import ROOT

from optimizer.artifacts import write_text_atomically
from optimizer.engines.cuda_bindings import CudaPython
from optimizer.engines.tensorrt.session import OpenEngine, TensorRtSession
from optimizer.environment import fingerprint

LIMIT_US = 20.0
REPORT = ROOT / "reports" / "tensorrt" / "host_overhead.md"
IMAGE = 224
CLASSES = 1000
_BLOCKS = 20


class NullRuntime:
    """``cuda.bindings.runtime`` without a GPU: every call succeeds immediately, with host memory."""

    cudaStreamNonBlocking = 1  # noqa: N815 - the real name
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self._memory: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if name in {"cudaMalloc", "cudaMallocHost"}:
            function: Callable[..., tuple[Any, ...]] = self._allocate
        elif name in {
            "cudaStreamCreateWithFlags",
            "cudaStreamEndCapture",
            "cudaGraphInstantiate",
            "cudaEventCreate",
        }:
            function = lambda *_: (0, 4096)  # noqa: E731
        else:
            function = lambda *_: (0,)  # noqa: E731
        setattr(self, name, function)
        return function

    def _allocate(self, size: int) -> tuple[int, int]:
        self._memory.append(np.zeros(size, np.uint8))
        return 0, self._memory[-1].ctypes.data


class NullEngine:
    """A ResNet engine that computes nothing."""

    num_io_tensors = 2
    num_optimization_profiles = 1

    def __init__(self, trt: Any) -> None:
        self._trt = trt

    def get_tensor_name(self, index: int) -> str:
        """The input, then the output."""
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> Any:
        """Whether it is the input or the output."""
        return self._trt.TensorIOMode.INPUT if name == "images" else self._trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Dynamic in the batch."""
        return (-1, 3, IMAGE, IMAGE) if name == "images" else (-1, CLASSES)

    def get_tensor_dtype(self, name: str) -> Any:  # noqa: ARG002
        """FP32."""
        return self._trt.DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:  # noqa: ARG002
        """Batches 1 to 32."""
        return [(batch, 3, IMAGE, IMAGE) for batch in (1, 8, 32)]

    def create_execution_context(self) -> NullContext:
        """A context."""
        return NullContext()


class NullContext:
    """An execution context that accepts everything."""

    active_optimization_profile = 0
    nvtx_verbosity: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:  # noqa: ARG002
        """Accepted."""
        return True

    def infer_shapes(self) -> list[str]:
        """Nothing is missing."""
        return []

    def set_tensor_address(self, name: str, memory: int) -> bool:  # noqa: ARG002
        """Accepted."""
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:  # noqa: ARG002
        """Done."""
        return True


def null_session(*, cuda_graph: bool) -> TensorRtSession:
    """A session on the simulated GPU."""
    import tensorrt_rtx as trt

    api = CudaPython.__new__(CudaPython)
    api._runtime, api.name = NullRuntime(), "nothing"  # noqa: SLF001 - all that its constructor sets
    engine = NullEngine(trt)
    return TensorRtSession(
        OpenEngine(
            trt=trt,
            engine=engine,
            make_context=engine.create_execution_context,
            api=api,
            cuda_graph=cuda_graph,
        )
    )


def microseconds(call: Callable[[], object], calls: int) -> float:
    """Time per call: the mean of the fastest block, because disturbances only make calls slower."""
    for _ in range(200):
        call()
    gc.disable()
    try:
        return min(_block(call, max(1, calls // _BLOCKS)) for _ in range(_BLOCKS))
    finally:
        gc.enable()


def _block(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - started) / calls / 1e3


def measure(*, cuda_graph: bool, calls: int) -> dict[str, float]:
    """Microseconds by part of a call; an indented part is included in the one above it."""
    session = null_session(cuda_graph=cuda_graph)
    bound = session.bind(np.zeros((1, 3, IMAGE, IMAGE), np.float32))
    bound.enqueue()
    stream = session.stream

    def whole() -> None:
        bound.enqueue()
        bound.wait()

    parts: dict[str, Callable[[], object]] = {
        "a call: enqueue and wait": whole,
        "enqueue": bound.enqueue,
        "  is it open, and this thread's": bound._check_open,  # noqa: SLF001
    }
    if cuda_graph:
        graph = bound._graph  # noqa: SLF001
        assert graph is not None
        parts["  launch of the graph"] = lambda: graph.launch(stream)
        parts["    through cuda.bindings"] = lambda: session._api.graph_launch(4096, 4096)  # noqa: SLF001
    else:
        execution = session._execution  # noqa: SLF001
        parts["  start of the context"] = lambda: execution.start(bound.binding)
        parts["    the library's own call"] = lambda: execution.context.execute_async_v3(4096)
    parts["wait"] = bound.wait
    parts["  synchronize"] = stream.synchronize
    parts["    through cuda.bindings "] = lambda: session._api.stream_synchronize(4096)  # noqa: SLF001
    parts["upload (a copy and its wait)"] = bound.upload
    parts["download (a copy and its wait)"] = bound.download
    spent = {name: microseconds(part, calls) for name, part in parts.items()}
    session.close()
    return spent


def page(measured: dict[str, dict[str, float]]) -> str:
    """The report in Markdown."""
    machine = fingerprint()
    lines = [
        "# What our Python costs a call at batch 1",
        "",
        (
            "`python benchmarks/host_overhead.py --write`: the session and its layer over `cuda.bindings`, "
            "on a GPU whose work takes no time. CUDA's and TensorRT's own calls come on top. Microseconds, "
            f"the quickest of {_BLOCKS} blocks; {machine['cpu']}, Python {sys.version.split()[0]}."
        ),
        "",
    ]
    for kind, parts in measured.items():
        lines += [f"| {kind} | µs |", "|---|---|"]
        lines += [f"| {name.replace('  ', '· ')} | {spent:.2f} |" for name, spent in parts.items()]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Measure and print; fail if the overhead exceeds the limit."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--write", action="store_true", help="write the report")
    options = parser.parse_args()
    measured = {
        name: measure(cuda_graph=graph, calls=options.calls)
        for name, graph in (("call by call", False), ("CUDA graph", True))
    }
    text = page(measured)
    print(text)
    if options.write:
        write_text_atomically(REPORT, text)
    worst = max(next(iter(parts.values())) for parts in measured.values())
    print(f"{worst:.1f} µs per call, limit {LIMIT_US:.0f} µs")
    return 0 if worst <= LIMIT_US else 1


if __name__ == "__main__":
    sys.exit(main())
