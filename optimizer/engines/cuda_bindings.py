"""The CUDA calls that this package needs, and their implementation with cuda-python.

Handles and addresses are plain integers, which is also what TensorRT's Python API takes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

from optimizer.errors import MissingDevice, ResnetOptError
from optimizer.nvml import Nvml

__all__ = ["CudaApi", "CudaDevice", "CudaPython", "cuda_version", "package_version"]

HINT_DEVICE = "run it on a machine with an NVIDIA GPU and its driver"
HINT_MEMORY = "use a smaller batch, or free memory on the GPU"
HINT_LIBRARY = 'pip install "resnet-opt[cuda]"'
# Codes of cudaError_t that mean "there is no usable GPU": StubLibrary, InsufficientDriver,
# NoDevice, InvalidDevice, SystemNotReady, SystemDriverMismatch.
_NO_DEVICE = {34, 35, 100, 101, 802, 803}
_OUT_OF_MEMORY = 2
# Sticky errors, after which every further call of the process fails: ECCUncorrectable, IllegalAddress,
# LaunchTimeout, Assert, and the other faults of a kernel up to LaunchFailure, Unknown.
_STICKY = {214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999}
HINT_FAULT = "start again: this process lost the GPU (for the cause: sudo dmesg | grep -i xid)"
_DRIVER_TOO_OLD = 35
"""The driver is too old for the package's CUDA runtime; also reported if there is no driver."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU as reported by CUDA or, without a CUDA package, by NVML.

    Attributes:
        index: CUDA's index; NVML counts differently.
        address: The PCI address, ``0000:17:00``; ``None`` if unknown.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int | None
    address: str | None = None

    @property
    def sm(self) -> str:
        """The compute capability in the form of build targets, ``sm86``."""
        return f"sm{self.capability[0]}{self.capability[1]}"


class CudaApi(Protocol):
    """The CUDA calls that this package needs; every handle and address is an integer."""

    name: str
    """The package and its version."""

    def devices(self) -> list[CudaDevice]:
        """Every GPU of this process."""

    def driver_version(self) -> str | None:
        """The newest CUDA version the driver supports; ``None`` without a driver."""

    def set_device(self, index: int) -> None:
        """Make a device current in this thread."""

    def malloc(self, size: int) -> int:
        """Allocate device memory and return its address."""

    def free(self, address: int) -> None:
        """Free device memory."""

    def malloc_host(self, size: int) -> int:
        """Allocate page-locked host memory and return its address."""

    def free_host(self, address: int) -> None:
        """Free page-locked host memory."""

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Start a copy from page-locked memory to the device."""

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Start a copy from the device to page-locked memory."""

    def stream_create(self) -> int:
        """Create a stream that does not wait for the default stream."""

    def stream_synchronize(self, stream: int) -> None:
        """Wait for all work in a stream."""

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""

    def event_create(self) -> int:
        """Create an event with timing."""

    def event_record(self, event: int, stream: int) -> None:
        """Enqueue an event on a stream."""

    def event_synchronize(self, event: int) -> None:
        """Wait for an event."""

    def event_elapsed_ms(self, start: int, stop: int) -> float:
        """Milliseconds between two events."""

    def event_destroy(self, event: int) -> None:
        """Destroy an event."""

    def capture_begin(self, stream: int) -> None:
        """Start capturing what this thread enqueues on a stream."""

    def capture_end(self, stream: int) -> int:
        """End the capture and return the executable graph."""

    def graph_launch(self, graph: int, stream: int) -> None:
        """Enqueue a graph on a stream."""

    def graph_destroy(self, graph: int) -> None:
        """Destroy an executable graph."""


class CudaPython:
    """`CudaApi` implemented with ``cuda.bindings.runtime`` of cuda-python 12.x and 13.x."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self.name = f"cuda-python {package_version('cuda-bindings', 'cuda-python')}"

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        code = int(error)
        if code == 0:
            return values[0] if len(values) == 1 else values
        text = f"{function}: {self._error_text(error)} (CUDA error {code})"
        self._runtime.cudaGetLastError()  # clear it, else another library would report it
        if code == _DRIVER_TOO_OLD and (driver := self._driver_by_nvml()):
            raise MissingDevice(
                f"{self.name} needs a newer driver than the installed one for CUDA {driver}",
                hint=f'update the driver, or pip install "cuda-python<{_after(driver)}"',
            )
        if code in _NO_DEVICE:
            raise MissingDevice(text, hint=HINT_DEVICE)
        if code in _STICKY:
            raise ResnetOptError(text, hint=HINT_FAULT)
        raise ResnetOptError(text, hint=HINT_MEMORY if code == _OUT_OF_MEMORY else None)

    @staticmethod
    def _driver_by_nvml() -> str | None:
        with Nvml() as nvml:
            return cuda_version(nvml.cuda())

    def _error_text(self, error: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)

    def devices(self) -> list[CudaDevice]:
        devices = []
        for index in range(self._call("cudaGetDeviceCount")):
            properties = self._call("cudaGetDeviceProperties", index)
            name = properties.name
            devices.append(
                CudaDevice(
                    index,
                    name.decode() if isinstance(name, bytes) else str(name),
                    (int(properties.major), int(properties.minor)),
                    int(properties.totalGlobalMem),
                    f"{int(properties.pciDomainID):04x}:{int(properties.pciBusID):02x}:"
                    f"{int(properties.pciDeviceID):02x}",
                )
            )
        return devices

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
        # Non-blocking, so that it does not wait for the legacy default stream of other libraries.
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


def cuda_version(number: int) -> str | None:
    """``13000`` as ``13.0``; ``None`` for zero, which means no driver."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _after(version: str) -> int:
    """The next major version: 13 for ``12.4``."""
    return int(version.partition(".")[0]) + 1


def package_version(*distributions: str) -> str:
    """The version of the first installed distribution of these."""
    from importlib import metadata

    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "of unknown version"
