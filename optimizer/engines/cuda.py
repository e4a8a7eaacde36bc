"""CUDA memory, streams, events and graphs, with ``cuda-python`` or ``pycuda``.

Both packages are optional and imported on first use. Each class owns one handle, frees it when closed
(closing again does nothing), and is a context manager.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from optimizer.engines.cuda_bindings import (
    HINT_DEVICE,
    HINT_LIBRARY,
    CudaApi,
    CudaDevice,
    CudaPython,
    cuda_version,
    package_version,
)
from optimizer.engines.cuda_pycuda import PyCuda
from optimizer.errors import MissingDevice, MissingLibrary, ResnetOptError, UsageError
from optimizer.nvml import Nvml

__all__ = [
    "CudaDevice",
    "CudaStatus",
    "DeviceBuffer",
    "Event",
    "Graph",
    "PinnedBuffer",
    "Stream",
    "check_device_exists",
    "cuda_api",
    "cuda_devices",
    "cuda_status",
    "device_index",
    "driver_version",
    "free_memory",
    "nvml_gpus",
]


@functools.cache
def cuda_api() -> CudaApi:
    """The CUDA API of this process, opened once.

    Raises:
        MissingLibrary: Neither cuda-python nor pycuda is installed.
        MissingDevice: Only pycuda is installed, and there is no driver.
    """
    return open_api()


def open_api() -> CudaApi:
    """Open cuda-python if it is installed, else pycuda.

    Raises:
        MissingLibrary: Neither is installed.
        MissingDevice: Only pycuda is installed, and there is no driver.
    """
    with contextlib.suppress(ImportError):
        return CudaPython()
    try:
        return PyCuda(f"pycuda {package_version('pycuda')}")
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            "neither cuda-python nor pycuda is installed", hint=HINT_LIBRARY
        ) from error
    except ImportError as error:  # pycuda links libcuda, which is part of the driver
        raise MissingDevice(f"pycuda cannot be used: {error}", hint=HINT_DEVICE) from error


# --- GPUs of this machine --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaStatus:
    """The GPUs of this machine, and why they cannot be used.

    Attributes:
        devices: The GPUs; also listed if no CUDA package is installed.
        package: ``cuda-python`` or ``pycuda`` with its version; ``None`` if neither is installed.
        driver: The newest CUDA version the driver supports, ``13.0``; ``None`` without a driver.
        fault: Why no GPU can be used; ``None`` if one can.
        hint: How to fix it.
    """

    devices: tuple[CudaDevice, ...]
    package: str | None
    driver: str | None
    fault: str | None
    hint: str | None


def cuda_status() -> CudaStatus:
    """The GPUs of this machine; does not raise if parts are missing, and creates no CUDA context."""
    try:
        api = cuda_api()
    except MissingLibrary as error:
        devices, driver = _devices_from_nvml()
        if driver is None:
            return CudaStatus((), None, None, "no NVIDIA driver", HINT_DEVICE)
        if _all_hidden():
            return CudaStatus((), None, driver, _HIDDEN, _HINT_HIDDEN)
        return CudaStatus(devices, None, driver, error.message, error.hint)
    except MissingDevice as error:
        return CudaStatus((), "pycuda", None, error.message, error.hint)
    driver = None
    try:
        driver = api.driver_version()
        if driver is None:
            return CudaStatus((), api.name, None, "no NVIDIA driver", HINT_DEVICE)
        devices = tuple(api.devices())
    except ResnetOptError as error:
        if driver is not None and _all_hidden():
            return CudaStatus((), api.name, driver, _HIDDEN, _HINT_HIDDEN)
        return CudaStatus((), api.name, driver, error.message, error.hint or HINT_DEVICE)
    if not devices:
        fault, hint = (_HIDDEN, _HINT_HIDDEN) if _all_hidden() else (_NONE, HINT_DEVICE)
        return CudaStatus((), api.name, driver, fault, hint)
    return CudaStatus(devices, api.name, driver, None, None)


_NONE = "the driver reports no GPU"
_HIDDEN = "CUDA_VISIBLE_DEVICES hides every GPU"
_HINT_HIDDEN = "unset CUDA_VISIBLE_DEVICES"


def _all_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}


def cuda_devices() -> list[CudaDevice]:
    """The GPUs of this machine; empty without GPUs or a driver."""
    return list(cuda_status().devices)


def _devices_from_nvml() -> tuple[tuple[CudaDevice, ...], str | None]:
    """GPUs and CUDA version as reported by NVML, without a CUDA package."""
    with Nvml() as nvml:
        devices = tuple(
            CudaDevice(
                index, nvml.name(handle), capability, nvml.memory(handle), nvml.address(handle)
            )
            for index, handle in _visible(nvml.handles)
            if (capability := nvml.capability(handle)) is not None
        )
        return devices, cuda_version(nvml.cuda())


def _visible(gpus: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, counted as CUDA counts them.

    UUIDs and MIG slices in it are not resolved: then all GPUs are returned.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    parts = [] if listed is None or _all_hidden() else listed.split(",")
    if listed is None or not all(part.strip().isdecimal() for part in parts):
        return gpus
    by_index = dict(gpus)
    chosen = [by_index[int(part)] for part in parts if int(part) in by_index]
    return list(enumerate(chosen))


def nvml_gpus(nvml: Nvml) -> dict[str, tuple[int, Any]]:
    """NVML's index and handle of each GPU that CUDA lists, by CUDA's name for it, ``cuda:1``.

    CUDA leaves out what ``CUDA_VISIBLE_DEVICES`` hides and lists the fastest GPU first; NVML lists all by
    PCI address.
    """
    if not nvml.handles:
        return {}
    by_index = dict(nvml.handles)
    found = {}
    for device in cuda_devices():
        gpu = nvml.at(device.address) if device.address is not None else None
        if gpu is None and device.index in by_index:
            gpu = device.index, by_index[device.index]
        if gpu is not None:
            found[f"cuda:{device.index}"] = gpu
    return found


def free_memory() -> dict[str, int]:
    """Free bytes of each GPU that CUDA lists, ``cuda:1``; a GPU that reports nothing is left out.

    For a MIG slice, NVML denies the answer or reports the whole GPU; CUDA knows the size of the slice.
    """
    with Nvml() as nvml:
        found = nvml_gpus(nvml)
        free = {name: nvml.free_memory(handle) for name, (_, handle) in found.items()}
    known = {}
    for device in cuda_devices():
        name = f"cuda:{device.index}"
        sizes = [size for size in (free.get(name), device.memory_bytes) if size is not None]
        if sizes:
            known[name] = min(sizes)
    return known


def driver_version() -> str | None:
    """The version of the NVIDIA driver, ``580.65.06``; ``None`` without a driver."""
    with Nvml() as nvml:
        return nvml.driver()


def device_index(name: str | None) -> int:
    """The index in ``cuda:1``, ``cuda`` or ``1``; ``None`` is the first device.

    Raises:
        UsageError: ``name`` is not the name of a device.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?|(\d+)", name or "cuda")
    if match is None:
        raise UsageError(f"unknown device {name!r}", hint="cuda:0, cuda:1 and so on")
    return int(match[1] or match[2] or 0)


def check_device_exists(index: int, devices: Sequence[CudaDevice]) -> None:
    """Check that the machine has a GPU with this index.

    Raises:
        MissingDevice: It has fewer.
    """
    if index >= len(devices):
        others = "cuda:0" if len(devices) < 2 else f"cuda:0 to cuda:{len(devices) - 1}"
        raise MissingDevice(
            f"there is no cuda:{index}, only {len(devices)} GPU(s)", hint=f"--device {others}"
        )


# --- handles --------------------------------------------------------------------------------


class _Handle:
    """A handle that is freed exactly once."""

    def __init__(self, api: CudaApi | None, handle: int) -> None:
        self._handle: int | None = handle
        self.api = api or cuda_api()

    @property
    def handle(self) -> int:
        """The handle or address as an integer."""
        if self._handle is None:
            raise ValueError(f"this {type(self).__name__} is closed")
        return self._handle

    def _release(self, handle: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Free the handle; calling it again does nothing."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._release(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class DeviceBuffer(_Handle):
    """``size`` bytes of device memory; `handle` is its address."""

    def __init__(self, size: int, *, api: CudaApi | None = None) -> None:
        api = api or cuda_api()
        self.size = size
        super().__init__(api, api.malloc(size))

    def _release(self, handle: int) -> None:
        self.api.free(handle)


class PinnedBuffer(_Handle):
    """``size`` bytes of page-locked host memory, which the GPU can copy from directly."""

    def __init__(self, size: int, *, api: CudaApi | None = None) -> None:
        api = api or cuda_api()
        self.size = size
        super().__init__(api, api.malloc_host(size))

    def _release(self, handle: int) -> None:
        self.api.free_host(handle)

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The first bytes as an array that shares this memory; invalid after `close`."""
        size = int(np.prod(shape)) * dtype.itemsize
        if size > self.size:
            raise ValueError(f"{size} bytes do not fit into {self.size}")
        raw = (ctypes.c_ubyte * size).from_address(self.handle)
        return np.frombuffer(memoryview(raw), dtype=dtype).reshape(shape)


class Stream(_Handle):
    """An in-order queue of GPU work that does not wait for the default stream."""

    def __init__(self, *, api: CudaApi | None = None) -> None:
        api = api or cuda_api()
        super().__init__(api, api.stream_create())

    def _release(self, handle: int) -> None:
        self.api.stream_destroy(handle)

    def synchronize(self) -> None:
        """Wait until everything in the stream is done."""
        self.api.stream_synchronize(self.handle)

    def upload(self, target: DeviceBuffer, source: PinnedBuffer, size: int) -> None:
        """Start copying the first ``size`` bytes to the device."""
        self.api.to_device(target.handle, source.handle, size, self.handle)

    def download(self, target: PinnedBuffer, source: DeviceBuffer, size: int) -> None:
        """Start copying the first ``size`` bytes to the host."""
        self.api.to_host(target.handle, source.handle, size, self.handle)

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Graph]]:
        """Capture the work enqueued in the block as a graph instead of running it.

        Yields:
            A list that holds the `Graph` once the block has ended.
        """
        captured: list[Graph] = []
        self.api.capture_begin(self.handle)
        try:
            yield captured
        except BaseException:
            # A stream left in capture mode would be unusable.
            with contextlib.suppress(ResnetOptError):
                self.api.graph_destroy(self.api.capture_end(self.handle))
            raise
        captured.append(Graph(self.api.capture_end(self.handle), api=self.api))


class Event(_Handle):
    """An event in a stream that records the time at which the GPU reached it."""

    def __init__(self, *, api: CudaApi | None = None) -> None:
        api = api or cuda_api()
        super().__init__(api, api.event_create())

    def _release(self, handle: int) -> None:
        self.api.event_destroy(handle)

    def record(self, stream: Stream) -> None:
        """Enqueue the event on a stream."""
        self.api.event_record(self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the GPU has reached the event."""
        self.api.event_synchronize(self.handle)

    def elapsed_ms(self, start: Event) -> float:
        """Milliseconds of GPU time since another event."""
        return self.api.event_elapsed_ms(start.handle, self.handle)


class Graph(_Handle):
    """Captured GPU work that is launched by one call; see `Stream.capture`."""

    def __init__(self, handle: int, *, api: CudaApi | None = None) -> None:
        super().__init__(api, handle)

    def _release(self, handle: int) -> None:
        self.api.graph_destroy(handle)

    def launch(self, stream: Stream) -> None:
        """Enqueue the captured work on a stream."""
        self.api.graph_launch(self.handle, stream.handle)
