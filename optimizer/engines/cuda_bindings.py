"""The two Python packages that reach CUDA, behind one set of calls.

Handles and addresses are plain integers, which is also what TensorRT's Python API takes. Neither
package is imported before `open_api`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from optimizer.errors import MissingDevice, MissingLibrary, ResnetOptError

__all__ = ["CudaApi", "CudaDevice", "open_api"]

MEND_DEVICE = "run it on a machine with an NVIDIA GPU and its driver"
MEND_LIBRARY = 'pip install "resnet-opt[cuda]"'
# Codes of cudaError_t that mean "there is no usable GPU": StubLibrary, InsufficientDriver,
# NoDevice, InvalidDevice, SystemNotReady, SystemDriverMismatch.
_NO_DEVICE = {34, 35, 100, 101, 802, 803}
_OUT_OF_MEMORY = 2


@dataclass(frozen=True)
class CudaDevice:
    """One GPU as CUDA (or, without a CUDA package, the driver's NVML) sees it."""

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int | None

    @property
    def sm(self) -> str:
        """The compute capability as build targets spell it, ``sm86``."""
        return f"sm{self.capability[0]}{self.capability[1]}"


class CudaApi(Protocol):
    """The calls of CUDA that this package needs; every handle and address is an integer."""

    name: str
    """The package and its version."""

    def devices(self) -> list[CudaDevice]:
        """Every GPU of this process."""

    def driver_version(self) -> str | None:
        """The newest CUDA version the driver supports; ``None`` without a driver."""

    def set_device(self, index: int) -> None:
        """Make a device current in this thread."""

    def malloc(self, size: int) -> int:
        """Allocate device memory; its address."""

    def free(self, address: int) -> None:
        """Free device memory."""

    def malloc_host(self, size: int) -> int:
        """Allocate page-locked host memory; its address."""

    def free_host(self, address: int) -> None:
        """Free page-locked host memory."""

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Start a copy from page-locked memory to the device."""

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Start a copy from the device to page-locked memory."""

    def stream_create(self) -> int:
        """Create a stream that does not wait for the default stream."""

    def stream_synchronize(self, stream: int) -> None:
        """Wait for everything in a stream."""

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""

    def event_create(self) -> int:
        """Create an event that keeps time."""

    def event_record(self, event: int, stream: int) -> None:
        """Put an event into a stream."""

    def event_synchronize(self, event: int) -> None:
        """Wait for an event."""

    def event_elapsed_ms(self, start: int, stop: int) -> float:
        """Milliseconds between two events."""

    def event_destroy(self, event: int) -> None:
        """Destroy an event."""

    def capture_begin(self, stream: int) -> None:
        """Record what this thread puts into a stream instead of running it."""

    def capture_end(self, stream: int) -> int:
        """End the recording; the executable graph."""

    def graph_launch(self, graph: int, stream: int) -> None:
        """Put a graph into a stream."""

    def graph_destroy(self, graph: int) -> None:
        """Destroy an executable graph."""


class _CudaPython:
    """`CudaApi` over ``cuda.bindings.runtime`` of cuda-python 12.x and 13.x."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self.name = f"cuda-python {_version('cuda-bindings', 'cuda-python')}"

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        code = int(error)
        if code == 0:
            return values[0] if len(values) == 1 else values
        text = f"{function}: {self._error_text(error)} (CUDA error {code})"
        if code in _NO_DEVICE:
            raise MissingDevice(text, mend=MEND_DEVICE)
        mend = "use a smaller batch, or free memory on the GPU" if code == _OUT_OF_MEMORY else None
        raise ResnetOptError(text, mend=mend)

    def _error_text(self, error: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)

    def devices(self) -> list[CudaDevice]:
        found = []
        for index in range(self._call("cudaGetDeviceCount")):
            properties = self._call("cudaGetDeviceProperties", index)
            name = properties.name
            found.append(
                CudaDevice(
                    index,
                    name.decode() if isinstance(name, bytes) else str(name),
                    (int(properties.major), int(properties.minor)),
                    int(properties.totalGlobalMem),
                )
            )
        return found

    def driver_version(self) -> str | None:
        return cuda_version(self._call("cudaDriverGetVersion"))

    def set_device(self, index: int) -> None:
        self._call("cudaSetDevice", index)

    def malloc(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def malloc_host(self, size: int) -> int:
        return int(self._call("cudaMallocHost", size))

    def free_host(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def stream_create(self) -> int:
        # Non-blocking: work here must not wait for the legacy default stream of other libraries.
        flags = self._runtime.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flags))

    def stream_synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def stream_destroy(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def event_create(self) -> int:
        return int(self._call("cudaEventCreate"))

    def event_record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def event_synchronize(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def event_elapsed_ms(self, start: int, stop: int) -> float:
        return float(self._call("cudaEventElapsedTime", start, stop))

    def event_destroy(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def capture_begin(self, stream: int) -> None:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def capture_end(self, stream: int) -> int:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def graph_launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def graph_destroy(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)


class _PyCuda:
    """`CudaApi` over ``pycuda``, which has no CUDA graphs.

    The primary context of the device is used, the one that TensorRT's runtime calls use as well.
    """

    def __init__(self) -> None:
        from pycuda import driver

        driver.init()
        self._driver = driver
        self._contexts: dict[int, Any] = {}
        self._current: int | None = None
        # pycuda frees an object when Python forgets it, so they are kept by address or handle.
        self._kept: dict[int, Any] = {}
        self.name = f"pycuda {_version('pycuda')}"

    def _keep(self, key: int, value: Any) -> int:
        self._kept[key] = value
        return key

    def devices(self) -> list[CudaDevice]:
        count = self._driver.Device.count()
        every = [self._driver.Device(index) for index in range(count)]
        return [
            CudaDevice(index, d.name(), d.compute_capability(), d.total_memory())
            for index, d in enumerate(every)
        ]

    def driver_version(self) -> str | None:
        return cuda_version(self._driver.get_driver_version())

    def set_device(self, index: int) -> None:
        if index == self._current:
            return
        if index not in self._contexts:
            self._contexts[index] = self._driver.Device(index).retain_primary_context()
        self._contexts[index].push()
        self._current = index

    def malloc(self, size: int) -> int:
        allocation = self._driver.mem_alloc(size)
        return self._keep(int(allocation), allocation)

    def free(self, address: int) -> None:
        self._kept.pop(address).free()

    def malloc_host(self, size: int) -> int:
        array = self._driver.pagelocked_empty(size, np.uint8)
        return self._keep(array.ctypes.data, array)

    def free_host(self, address: int) -> None:
        self._kept.pop(address).base.free()

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._driver.memcpy_htod_async(target, self._kept[source][:size], self._kept[stream])

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        self._driver.memcpy_dtoh_async(self._kept[target][:size], source, self._kept[stream])

    def stream_create(self) -> int:
        stream = self._driver.Stream()
        return self._keep(int(stream.handle), stream)

    def stream_synchronize(self, stream: int) -> None:
        self._kept[stream].synchronize()

    def stream_destroy(self, stream: int) -> None:
        self._kept.pop(stream)

    def event_create(self) -> int:
        event = self._driver.Event()
        return self._keep(id(event), event)

    def event_record(self, event: int, stream: int) -> None:
        self._kept[event].record(self._kept[stream])

    def event_synchronize(self, event: int) -> None:
        self._kept[event].synchronize()

    def event_elapsed_ms(self, start: int, stop: int) -> float:
        return float(self._kept[stop].time_since(self._kept[start]))

    def event_destroy(self, event: int) -> None:
        self._kept.pop(event)

    def capture_begin(self, stream: int) -> None:  # noqa: ARG002
        raise _no_graphs()

    def capture_end(self, stream: int) -> int:  # noqa: ARG002
        raise _no_graphs()

    def graph_launch(self, graph: int, stream: int) -> None:  # noqa: ARG002
        raise _no_graphs()

    def graph_destroy(self, graph: int) -> None:  # noqa: ARG002
        raise _no_graphs()


def _no_graphs() -> MissingLibrary:
    return MissingLibrary("pycuda has no CUDA graphs", mend=MEND_LIBRARY)


def open_api() -> CudaApi:
    """The CUDA package of this process: cuda-python if it is installed, else pycuda.

    Raises:
        MissingLibrary: Neither is installed.
        MissingDevice: pycuda is all there is, and there is no driver.
    """
    with contextlib.suppress(ImportError):
        return _CudaPython()
    try:
        return _PyCuda()
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            "neither cuda-python nor pycuda is installed", mend=MEND_LIBRARY
        ) from error
    except ImportError as error:  # pycuda links libcuda, which comes with the driver
        raise MissingDevice(f"pycuda cannot be used: {error}", mend=MEND_DEVICE) from error


def cuda_version(number: int) -> str | None:
    """``13000`` as ``13.0``; ``None`` for zero, which means no driver."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _version(*distributions: str) -> str:
    from importlib import metadata

    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "of unknown version"
