"""A GPU simulated in host memory, with engines that ONNX Runtime computes.

These tests run without a GPU, so the CUDA and TensorRT calls of `TensorRtSession` run on the host.
The simulation keeps the relevant behaviour of the real libraries:

* Work in a stream runs only when the stream is synchronized. Time is simulated: a computation takes
  `KERNEL_MS`, a copy `COPY_MS`, an event none.
* Invalid calls fail as in the libraries: TensorRT returns false and logs an error (or ignores the
  call, or raises), CUDA raises, and undefined behaviour raises `Undefined` here.
* Every call can be made to fail (`HostCuda.fail_at`): only this call (no memory), a kernel fault that
  appears at the next synchronization and stays, or a device that is lost from then on.

The contract tests check that names and arguments exist in the real libraries; `test_gpu.py` runs the
same session on a real GPU.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from optimizer.engines.cuda_bindings import CudaDevice
from optimizer.engines.tensorrt.log import BuildLog
from optimizer.engines.tensorrt.session import OpenEngine, TensorRtSession
from optimizer.errors import MissingDevice, ResnetOptError

KERNEL_MS, COPY_MS = 2.0, 0.5
FAILURES = ("refused", "kernel fault", "device lost")
OUTSIDE = "not a call of the libraries"


class Undefined(AssertionError):
    """Undefined behaviour in the real libraries, which must never occur."""


@dataclass
class Work:
    """A piece of work in a stream, and its duration on the GPU."""

    do: Callable[[], None]
    ms: float


@dataclass
class Recording:
    """Work captured from a stream.

    Attributes:
        contexts: The contexts in it with their versions: a graph is undefined once they change.
    """

    thread: int
    work: list[Work] = field(default_factory=list)
    contexts: list[tuple[Any, int]] = field(default_factory=list)
    broken: str | None = None


def _one_call_at_a_time(simulation: type) -> type:
    """Let threads make the public calls one after another: the real libraries are thread-safe."""
    lock = threading.RLock()

    def locked(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def under_the_lock(*arguments: Any, **named: Any) -> Any:
            with lock:
                return call(*arguments, **named)

        return under_the_lock

    for name, member in list(vars(simulation).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(simulation, name, locked(member))
    return simulation


@_one_call_at_a_time
class HostCuda:
    """`CudaApi` in host memory; every handle is the key of a dictionary."""

    name = "host memory"

    def __init__(self, devices: int = 1) -> None:
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.events: dict[int, float] = {}
        self.graphs: dict[int, Recording] = {}
        self.capturing: dict[int, Recording] = {}
        self.launches = 0
        self.calls: list[str] = []
        self.fail_at: dict[int, str] = {}
        self.allocations_left: int | None = None
        self.clock_ms = 0.0
        self._current: dict[int, int] = {}
        self._devices = devices
        self._next = 1000
        self._fault: str | None = None
        self._pending_fault: str | None = None

    @property
    def held(self) -> int:
        """The number of handles that have not been freed."""
        return sum(map(len, (self.memory, self.streams, self.events, self.graphs)))

    # --- failing ---------------------------------------------------------------------------------

    def enter(self, call: str) -> bool:
        """Count a call to either library; returns whether it should fail.

        Raises:
            ResnetOptError: The device has failed, now or before.
        """
        failure = self.fail_at.get(len(self.calls))
        self.calls.append(call)
        if failure == "device lost":
            self._fault = "unknown error (CUDA error 999)"
        if self._fault is not None:
            raise MissingDevice(f"{call}: {self._fault}")
        if failure == "kernel fault":
            self._pending_fault = "unspecified launch failure (CUDA error 719)"
        return failure == "refused"

    def _call(self, call: str, *, error: str = "invalid argument (CUDA error 1)") -> None:
        if self.enter(call):
            raise ResnetOptError(f"{call}: {error}")

    def _free(self, call: str, held: dict[int, Any], handle: int) -> None:
        """Free a handle; a failed device raises but frees it anyway."""
        if handle not in held:
            raise Undefined(f"{call} of an unknown handle")
        del held[handle]
        self._call(call)

    def _of(self, held: dict[int, Any], handle: int) -> Any:
        if handle not in held:
            raise Undefined(f"used after free, or never created: {handle}")
        return held[handle]

    def fault(self, text: str) -> None:
        """Let the GPU fail permanently, from the next synchronization on."""
        self._pending_fault = self._pending_fault or text

    # --- the CUDA API --------------------------------------------------------------------------

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def devices(self) -> list[CudaDevice]:
        return [CudaDevice(n, f"Host {n}", (8, 6), 1 << 30) for n in range(self._devices)]

    def driver_version(self) -> str:
        return "13.0"

    def set_device(self, index: int) -> None:
        self._call("set_device")
        if index >= self._devices:
            raise MissingDevice("cudaSetDevice: invalid device ordinal (CUDA error 101)")
        self._current[threading.get_ident()] = index

    def current(self) -> int:
        """The device of this thread."""
        return self._current.get(threading.get_ident(), 0)

    def malloc(self, size: int) -> int:
        return self._allocate("malloc", size)

    def malloc_host(self, size: int) -> int:
        return self._allocate("malloc_host", size)

    def takes_memory(self) -> bool:
        """Whether one more allocation succeeds."""
        if self.allocations_left is None:
            return True
        self.allocations_left -= 1
        return self.allocations_left >= 0

    def _allocate(self, call: str, size: int) -> int:
        out = "out of memory (CUDA error 2)"
        self._call(call, error=out)
        if not self.takes_memory():
            raise ResnetOptError(f"{call}: {out}")
        buffer = ctypes.create_string_buffer(max(size, 1))
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        self._finish_all()
        self._free("free", self.memory, address)

    def free_host(self, address: int) -> None:
        self._finish_all()
        self._free("free_host", self.memory, address)

    def _finish_all(self) -> None:
        """Run all pending work, because freeing memory synchronizes the device."""
        for stream in self.streams:
            self._finish(stream)

    def put(self, stream: int, work: Callable[[], None], ms: float = KERNEL_MS) -> None:
        """Enqueue work on a stream, or add it to the graph being captured."""
        recording = self.capturing.get(stream)
        queue = self._of(self.streams, stream) if recording is None else recording.work
        queue.append(Work(work, ms))

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._call("copy")
        if size > len(self._of(self.memory, target)) or size > len(self._of(self.memory, source)):
            raise Undefined("a copy outside of the memory")

        def copy() -> None:
            self._of(self.memory, target)
            self._of(self.memory, source)
            ctypes.memmove(target, source, size)

        self.put(stream, copy, COPY_MS)

    to_host = to_device

    def stream_create(self) -> int:
        self._call("stream_create")
        handle = self._handle()
        self.streams[handle] = []
        return handle

    def stream_synchronize(self, stream: int) -> None:
        self._call("stream_synchronize")
        if stream in self.capturing:
            self.capturing[stream].broken = "a stream was synchronized during capture"
            raise ResnetOptError(
                "operation not permitted when stream is capturing (CUDA error 900)"
            )
        self._of(self.streams, stream)
        self._finish(stream)
        if self._fault is not None:
            raise ResnetOptError(f"stream_synchronize: {self._fault}")

    def _finish(self, stream: int) -> None:
        """Run the work in a stream, up to the first fault."""
        queue, self.streams[stream] = self.streams[stream], []
        for work in queue:
            if self._fault is not None:
                return
            work.do()
            self.clock_ms += work.ms
            self._fault = self._pending_fault

    def stream_destroy(self, stream: int) -> None:
        self._free("stream_destroy", self.streams, stream)

    def event_create(self) -> int:
        self._call("event_create")
        handle = self._handle()
        self.events[handle] = -1.0
        return handle

    def event_record(self, event: int, stream: int) -> None:
        self._call("event_record")
        self._of(self.events, event)

        def reach() -> None:
            if event in self.events:  # one may be destroyed before it is reached
                self.events[event] = self.clock_ms

        self.put(stream, reach, 0.0)

    def event_synchronize(self, event: int) -> None:
        self._call("event_synchronize")
        self._of(self.events, event)
        for stream in self.streams:
            self.stream_synchronize(stream)

    def event_elapsed_ms(self, start: int, stop: int) -> float:
        self._call("event_elapsed_ms")
        if min(self._of(self.events, start), self._of(self.events, stop)) < 0:
            raise ResnetOptError("event_elapsed_ms: device not ready (CUDA error 600)")
        return self.events[stop] - self.events[start]

    def event_destroy(self, event: int) -> None:
        self._free("event_destroy", self.events, event)

    def capture_begin(self, stream: int) -> None:
        self._call("capture_begin")
        if self._of(self.streams, stream):
            raise Undefined("work before the capture is still pending")
        self.capturing[stream] = Recording(threading.get_ident())

    def capture_end(self, stream: int) -> int:
        recording = self.capturing.pop(stream)
        self._call("capture_end", error="capture was invalidated (CUDA error 901)")
        if recording.thread != threading.get_ident():
            raise ResnetOptError("capture_end: wrong thread (CUDA error 905)")
        if recording.broken is not None:
            raise ResnetOptError("capture_end: capture was invalidated (CUDA error 901)")
        handle = self._handle()
        self.graphs[handle] = recording
        return handle

    def graph_launch(self, graph: int, stream: int) -> None:
        self._call("graph_launch")
        recording = self._of(self.graphs, graph)
        for context, version in recording.contexts:
            if context.version != version:
                raise Undefined("a graph is launched after its context was changed")
        self.launches += 1
        self._of(self.streams, stream).extend(recording.work)

    def graph_destroy(self, graph: int) -> None:
        self._free("graph_destroy", self.graphs, graph)


@functools.cache
def _computing(graph: Path, changed: int) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


class HostEngine:
    """The part of ``ICudaEngine`` that `TensorRtSession` uses."""

    def __init__(
        self, trt: Any, cuda: HostCuda, graph: Path, profiles: list[tuple[int, int, int]]
    ) -> None:
        self.trt, self.cuda, self.profiles = trt, cuda, profiles
        self.session = _computing(graph, graph.stat().st_mtime_ns)
        (self.source,) = self.session.get_inputs()
        (self.target,) = self.session.get_outputs()
        self.contexts: weakref.WeakSet[HostContext] = weakref.WeakSet()
        self.newest: Any = None
        self.log = BuildLog()

    num_io_tensors = 2

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return (self.source.name, self.target.name)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self.trt.TensorIOMode
        return mode.INPUT if name == self.source.name else mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        node = self.source if name == self.source.name else self.target
        return tuple(d if isinstance(d, int) else -1 for d in node.shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        batch, *rest = self.get_tensor_shape(name)
        if batch > 0:
            raise Undefined("what a profile states for a static shape is not documented")
        return [(batch, *rest) for batch in self.profiles[profile_index]]

    def create_execution_context(self) -> HostContext | None:
        if self.refuses("create_execution_context") or not self.cuda.takes_memory():
            self.log.add("ERROR", "Error Code 2: OutOfMemory (Requested size was 512 bytes.)")
            return None
        context = HostContext(self)
        self.contexts.add(context)
        self.newest = weakref.ref(context)
        return context

    def create_engine_inspector(self) -> HostInspector:
        return HostInspector(self)

    def refuses(self, call: str) -> bool:
        """Whether a call should fail; TensorRT itself never raises on CUDA errors."""
        try:
            refused = self.cuda.enter(call)
        except ResnetOptError as error:
            self.log.add("ERROR", f"Error Code 1: Cuda Runtime ({error.message})")
            return True
        if refused:
            self.log.add("ERROR", f"Error Code 3: API Usage Error ({call} was refused)")
        return refused

    def layers(self, context: HostContext | None) -> list[dict[str, Any]]:
        """Two layers per profile, in the schema of TensorRT 10."""
        shaped = context is not None and context.shape is not None
        batch = context.shape[0] if shaped else -1
        kind = "Channel major FP16 format where channel % 8 == 0"
        if not shaped and self.get_tensor_shape(self.source.name)[0] < 0:
            kind = "N/A due to dynamic shapes"

        def tensor(name: str, *shape: int) -> dict[str, Any]:
            return {"Name": name, "Dimensions": [batch, *shape], "Format/Datatype": kind}

        layers = []
        for profile in range(len(self.profiles)):
            mark = f" [profile {profile}]" if profile else ""
            graph = 5 + 6 * profile
            conv = {
                "Name": f"conv1{mark}",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor(f"i{mark}", 3, 16, 16)],
                "Outputs": [tensor(f"o{mark}", 8, 16, 16)],
                "Weights": {"Type": "Half", "Count": 864},
                "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc",
                "Metadata": "[ONNX Layer: conv1]",
            }
            fc = {
                "Name": f"fc{mark}_myl{graph}_1",
                "LayerType": "gemm",
                "Inputs": [{**tensor("x", 16), "Dimensions": [-1, 16], "Format/Datatype": "Half"}],
                "Outputs": [{**tensor("y", 5), "Dimensions": [-1, 5], "Format/Datatype": "Half"}],
                "TacticName": "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64",
                "Metadata": "[ONNX Layer: fc]",
            }
            layers += [conv, fc]
        return layers


class HostContext:
    """The part of ``IExecutionContext`` that `TensorRtSession` uses."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.nvtx_verbosity = engine.trt.ProfilingVerbosity.DETAILED
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.executed: list[int] = []
        self.started_with: list[Any] = []
        self.shapes_set = 0
        self.version = 0
        self._profiler: Any = None
        self._thread: int | None = None

    @property
    def profiler(self) -> Any:
        return self._profiler

    @profiler.setter
    def profiler(self, profiler: Any) -> None:
        if profiler is None:  # rejected without an exception; the old one stays
            self.engine.log.add(
                "ERROR", "Parameter check failed, condition: (profiler) != nullptr."
            )
            return
        self._profiler = profiler

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._check_thread()
        capturing = stream_handle in self.engine.cuda.capturing
        if capturing or self.engine.refuses("set_optimization_profile_async"):
            raise RuntimeError("Error in set optimization profile async.")
        self.active_optimization_profile = profile_index
        self.shape = None
        self.version += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._check_thread()
        if name != self.engine.source.name or self.engine.refuses("set_input_shape"):
            return False
        low, _, high = self.engine.profiles[self.active_optimization_profile]
        rest = self.engine.get_tensor_shape(name)[1:]
        self.shapes_set += 1
        self.version += 1
        fits = low <= shape[0] <= high and tuple(shape[1:]) == rest
        if not fits:
            self.engine.log.add("ERROR", f"{shape} is outside of the profile")
        self.shape = tuple(shape) if fits else None
        return fits

    def infer_shapes(self) -> list[str]:
        missing = self.shape is None or self.engine.refuses("infer_shapes")
        return [self.engine.source.name] if missing else []

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._check_thread()
        known = name in {self.engine.source.name, self.engine.target.name}
        if not known or self.engine.refuses("set_tensor_address"):
            return False
        self.addresses[name] = memory
        self.version += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._check_thread()
        cuda = self.engine.cuda
        if cuda.current() >= cuda._devices or self.engine.refuses("execute_async_v3"):
            return False
        shape, addresses = self.shape, dict(self.addresses)
        if shape is None or len(addresses) < 2:
            self.engine.log.add("ERROR", "not all shapes and addresses are set")
            return False
        recording = cuda.capturing.get(stream_handle)
        if recording is not None:
            if self._profiler is not None:  # it synchronizes on its events, which ends the capture
                recording.broken = "a profiler waited"
                self.engine.log.add("ERROR", "operation not permitted when stream is capturing")
                return False
            recording.contexts.append((self, self.version))
        self.executed.append(shape[0])
        self.started_with.append(self.nvtx_verbosity)
        profile = self.active_optimization_profile
        cuda.put(stream_handle, lambda: self._compute(shape, addresses, profile))
        return True

    def _check_thread(self) -> None:
        self._thread = self._thread or threading.get_ident()
        if self._thread != threading.get_ident():
            raise Undefined("an execution context is used by two threads")

    def _compute(self, shape: tuple[int, ...], addresses: dict[str, int], profile: int) -> None:
        source, target = self.engine.source.name, self.engine.target.name
        memory = self.engine.cuda.memory
        count = int(np.prod(shape))
        wrong = [name for name in (source, target) if addresses[name] not in memory]
        outputs = 4 * shape[0] * int(self.engine.target.shape[1])
        if (
            wrong
            or len(memory[addresses[source]]) < 4 * count
            or len(memory[addresses[target]]) < outputs
        ):
            self.engine.cuda.fault("an illegal memory access was encountered (CUDA error 700)")
            return
        images = (ctypes.c_float * count).from_address(addresses[source])
        batch = np.frombuffer(memoryview(images), np.float32).reshape(shape)
        (logits,) = self.engine.session.run(None, {source: batch})
        logits = np.ascontiguousarray(logits, np.float32)
        ctypes.memmove(addresses[target], logits.ctypes.data, logits.nbytes)
        if self._profiler is not None:  # as in the library: read when it computes
            for layer, ms in zip(self.engine.layers(self)[2 * profile :], (1.5, 0.5), strict=False):
                self._profiler.report_layer_time(layer["Name"], ms)


class HostInspector:
    """What `inspect_engine` asks of an ``EngineInspector``."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.execution_context: Any = None

    def get_engine_information(self, format: Any) -> str:  # noqa: A002 - as the real one
        if self.engine.refuses("get_engine_information"):
            return ""
        layers = self.engine.layers(self.execution_context)
        return json.dumps({"Layers": layers, "Bindings": ["images", "logits"]})


def opened(engine: HostEngine, **options: Any) -> OpenEngine:
    """The engine as a session takes it over."""
    return OpenEngine(
        trt=engine.trt,
        engine=engine,
        make_context=engine.create_execution_context,
        api=engine.cuda,
        log=engine.log,
        **options,
    )


def open_session(engine: HostEngine, **options: Any) -> TensorRtSession:
    """A session of the engine."""
    return TensorRtSession(opened(engine, **options))
