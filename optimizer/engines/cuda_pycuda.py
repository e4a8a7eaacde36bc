"""`CudaApi` implemented with ``pycuda``, which has no CUDA graphs."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from optimizer.engines.cuda_bindings import HINT_LIBRARY, HINT_MEMORY, CudaDevice, cuda_version
from optimizer.errors import MissingLibrary, ResnetOptError

__all__ = ["PyCuda"]


class PyCuda:
    """The CUDA calls that this package needs.

    Uses the device's primary context, which TensorRT's runtime calls use as well. PyCUDA has a stack
    of contexts per thread and aborts the process if it is not empty when the thread ends, so contexts
    are popped then.
    """

    def __init__(self, name: str) -> None:
        from pycuda import driver

        self._driver = driver
        self._call("init", driver.init)
        self._contexts: dict[int, Any] = {}
        self._current_device = _Current()
        # pycuda frees an object with its last reference, so references are kept by address or handle.
        self._kept: dict[int, Any] = {}
        self.name = name
        atexit.register(self._free_all)

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.MemoryError as error:
            raise ResnetOptError(f"{name}: {error}", hint=HINT_MEMORY) from error
        except self._driver.Error as error:
            raise ResnetOptError(f"{name}: {error}") from error

    def _keep(self, key: int, value: Any) -> int:
        self._kept[key] = value
        return key

    def devices(self) -> list[CudaDevice]:
        count = self._call("Device.count", self._driver.Device.count)
        devices = [self._driver.Device(index) for index in range(count)]
        return [
            CudaDevice(
                index,
                d.name(),
                d.compute_capability(),
                d.total_memory(),
                d.pci_bus_id().rpartition(".")[0].lower(),  # 0000:17:00.0
            )
            for index, d in enumerate(devices)
        ]

    def driver_version(self) -> str | None:
        return cuda_version(self._driver.get_driver_version())

    def set_device(self, index: int) -> None:
        if index == self._current_device.index:
            return
        if index not in self._contexts:
            device = self._call("Device", self._driver.Device, index)
            self._contexts[index] = self._call(
                "retain_primary_context", device.retain_primary_context
            )
        self._current_device.leave()
        self._call("Context.push", self._contexts[index].push)
        self._current_device.enter(index, self._driver.Context.pop)

    def _free_all(self) -> None:
        """At exit, free all objects before their context."""
        self._kept.clear()
        self._current_device.leave()

    def malloc(self, size: int) -> int:
        allocation = self._call("mem_alloc", self._driver.mem_alloc, size)
        return self._keep(int(allocation), allocation)

    def free(self, address: int) -> None:
        self._kept.pop(address).free()

    def malloc_host(self, size: int) -> int:
        array = self._call("pagelocked_empty", self._driver.pagelocked_empty, size, np.uint8)
        return self._keep(array.ctypes.data, array)

    def free_host(self, address: int) -> None:
        self._kept.pop(address).base.free()

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        part = self._kept[source][:size]
        self._call(
            "memcpy_htod_async", self._driver.memcpy_htod_async, target, part, self._kept[stream]
        )

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        part = self._kept[target][:size]
        self._call(
            "memcpy_dtoh_async", self._driver.memcpy_dtoh_async, part, source, self._kept[stream]
        )

    def stream_create(self) -> int:
        stream = self._call("Stream", self._driver.Stream)
        return self._keep(int(stream.handle), stream)

    def stream_synchronize(self, stream: int) -> None:
        # Errors of asynchronous work are reported here.
        self._call("Stream.synchronize", self._kept[stream].synchronize)

    def stream_destroy(self, stream: int) -> None:
        self._kept.pop(stream)

    def event_create(self) -> int:
        event = self._call("Event", self._driver.Event)
        return self._keep(id(event), event)

    def event_record(self, event: int, stream: int) -> None:
        self._call("Event.record", self._kept[event].record, self._kept[stream])

    def event_synchronize(self, event: int) -> None:
        self._call("Event.synchronize", self._kept[event].synchronize)

    def event_elapsed_ms(self, start: int, stop: int) -> float:
        return float(self._call("Event.time_since", self._kept[stop].time_since, self._kept[start]))

    def event_destroy(self, event: int) -> None:
        self._kept.pop(event)

    def capture_begin(self, *_args: Any, **_options: Any) -> Any:
        """PyCUDA has no CUDA graphs."""
        raise MissingLibrary("pycuda has no CUDA graphs", hint=HINT_LIBRARY)

    capture_end = graph_launch = graph_destroy = capture_begin


class _PushedContext:
    """A pushed context, which is popped when its thread ends and drops the reference."""

    def __init__(self, pop: Callable[[], None]) -> None:
        self._pop: Callable[[], None] | None = pop

    def leave(self) -> None:
        """Pop the context; calling it again does nothing."""
        pop, self._pop = self._pop, None
        if pop is not None:
            pop()

    def __del__(self) -> None:
        self.leave()


class _Current(threading.local):
    """The current device of this thread."""

    index: int | None = None
    entered: _PushedContext | None = None

    def enter(self, index: int, pop: Callable[[], None]) -> None:
        """Note that a context was pushed."""
        self.index, self.entered = index, _PushedContext(pop)

    def leave(self) -> None:
        """Pop this thread's context."""
        entered, self.entered, self.index = self.entered, None, None
        if entered is not None:
            entered.leave()
