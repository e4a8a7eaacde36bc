"""A GPU made of host memory, and engines on it that ONNX Runtime computes.

There is no GPU where these tests run, so what `TensorRtSession` asks of CUDA and TensorRT is done
here on the host, with the property that matters kept: nothing that is put into a stream happens
before the stream is waited for. That the names and arguments exist in the real libraries is the
subject of the contract tests; `test_gpu.py` runs the same session on the real ones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from optimizer.engines.cuda_bindings import CudaDevice


class HostCuda:
    """`CudaApi` in host memory; every handle is the key of a dictionary."""

    name = "host memory"

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, float] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.current: int | None = None
        self.launches = 0
        self._next = 1000
        self._clock = 0.0

    @property
    def held(self) -> int:
        """Handles that nobody has given back."""
        return sum(map(len, (self.memory, self.streams, self.events, self.graphs)))

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def devices(self) -> list[CudaDevice]:
        return [CudaDevice(0, "Host", (8, 6), 1 << 30)]

    def driver_version(self) -> str:
        return "13.0"

    def set_device(self, index: int) -> None:
        self.current = index

    def malloc(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(max(size, 1))
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self.memory[address]

    malloc_host = malloc
    free_host = free

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Put work into a stream, or into the graph that is recorded from it."""
        self.capturing.get(stream, self.streams[stream]).append(work)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        assert size <= len(self.memory[target])
        assert size <= len(self.memory[source])
        self.put(stream, lambda: ctypes.memmove(target, source, size) and None)

    to_host = to_device

    def stream_create(self) -> int:
        handle = self._handle()
        self.streams[handle] = []
        return handle

    def stream_synchronize(self, stream: int) -> None:
        assert stream not in self.capturing, "a stream under capture may not be waited for"
        queue, self.streams[stream] = self.streams[stream], []
        for work in queue:
            work()
            self._clock += 1.0

    def stream_destroy(self, stream: int) -> None:
        del self.streams[stream]

    def event_create(self) -> int:
        handle = self._handle()
        self.events[handle] = -1.0
        return handle

    def event_record(self, event: int, stream: int) -> None:
        def reach() -> None:
            self.events[event] = self._clock

        self.put(stream, reach)

    def event_synchronize(self, event: int) -> None:
        for stream in self.streams:
            self.stream_synchronize(stream)

    def event_elapsed_ms(self, start: int, stop: int) -> float:
        assert self.events[start] >= 0
        assert self.events[stop] >= 0
        return self.events[stop] - self.events[start]

    def event_destroy(self, event: int) -> None:
        del self.events[event]

    def capture_begin(self, stream: int) -> None:
        assert not self.streams[stream], "work before the capture is still pending"
        self.capturing[stream] = []

    def capture_end(self, stream: int) -> int:
        handle = self._handle()
        self.graphs[handle] = self.capturing.pop(stream)
        return handle

    def graph_launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        self.streams[stream].extend(self.graphs[graph])

    def graph_destroy(self, graph: int) -> None:
        del self.graphs[graph]


class HostEngine:
    """What `TensorRtSession` asks of an ``ICudaEngine``."""

    def __init__(
        self, trt: Any, cuda: HostCuda, graph: Path, profiles: list[tuple[int, int, int]]
    ) -> None:
        self.trt, self.cuda, self.profiles = trt, cuda, profiles
        self.session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (self.source,) = self.session.get_inputs()
        (self.target,) = self.session.get_outputs()
        self.contexts: list[HostContext] = []

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
        rest = self.get_tensor_shape(name)[1:]
        return [(batch, *rest) for batch in self.profiles[profile_index]]

    def create_execution_context(self) -> HostContext:
        self.contexts.append(HostContext(self))
        return self.contexts[-1]

    def create_engine_inspector(self) -> HostInspector:
        return HostInspector()


class HostContext:
    """What `TensorRtSession` asks of an ``IExecutionContext``."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.profiler: Any = None
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.executed: list[int] = []
        self.shapes_set = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.active_optimization_profile = profile_index
        self.shape = None
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.active_optimization_profile]
        self.shapes_set += 1
        self.shape = shape if low <= shape[0] <= high else None
        return self.shape is not None

    def infer_shapes(self) -> list[str]:
        return [] if self.shape else [self.engine.source.name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        shape, addresses = self.shape, dict(self.addresses)
        if shape is None or len(addresses) < 2:
            return False
        source, target = self.engine.source.name, self.engine.target.name

        def compute() -> None:
            count = int(np.prod(shape))
            images = (ctypes.c_float * count).from_address(addresses[source])
            batch = np.frombuffer(memoryview(images), np.float32).reshape(shape)
            (logits,) = self.engine.session.run(None, {source: batch})
            logits = np.ascontiguousarray(logits, np.float32)
            ctypes.memmove(addresses[target], logits.ctypes.data, logits.nbytes)
            if self.profiler is not None:  # as the library: asked when it computes
                self.profiler.report_layer_time("conv1", 2.0)

        self.executed.append(shape[0])
        self.engine.cuda.put(stream_handle, compute)
        return True


class HostInspector:
    """What `inspect_engine` asks of an ``EngineInspector``: one layer, in the schema of 11."""

    def get_engine_information(self, format: Any) -> str:  # noqa: A002 - as the real one
        return (
            '{"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [{"Name": "i",'
            ' "Dimensions": [-1,3,16,16], "Datatype": "Half", "Format": "NHWC"}], "Outputs": [], '
            '"Weights": {"Type": "Half", "Count": 864}, "TacticName": "sm86_xmma", '
            '"Metadata": "[ONNX Layer: conv1]"}], "I/O Tensors": []}'
        )
