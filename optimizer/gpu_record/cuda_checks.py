"""Checks of the CUDA layer: memory, pinned copies, events, capture, out of memory, two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from optimizer.engines.cuda import DeviceBuffer, Event, PinnedBuffer, Stream
from optimizer.engines.cuda_bindings import CudaApi
from optimizer.errors import ResnetOptError

__all__ = ["check_cuda"]

_BYTES = 16 << 20
_TOO_MANY_BYTES = 1 << 50


def check_cuda(api: CudaApi, device: int = 0) -> dict[str, Any]:
    """Run each check; returns their results, including failures."""
    checks: dict[str, Callable[[CudaApi, int], Any]] = {
        "round trip": _round_trip,
        "capture of a copy": _capture,
        "out of memory": _out_of_memory,
        "two threads": _two_threads,
    }
    results: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            results[name] = check(api, device)
        except ResnetOptError as error:
            results[name] = {"error": type(error).__name__, "message": error.message}
    return results


def _round_trip(api: CudaApi, device: int) -> dict[str, Any]:
    """A copy from pinned memory to the device and back, timed with events."""
    api.set_device(device)
    values = np.arange(_BYTES // 4, dtype=np.float32)
    with (
        Stream(api=api) as stream,
        PinnedBuffer(_BYTES, api=api) as source,
        PinnedBuffer(_BYTES, api=api) as target,
        DeviceBuffer(_BYTES, api=api) as memory,
        Event(api=api) as start,
        Event(api=api) as stop,
    ):
        source.view(values.shape, values.dtype)[:] = values
        start.record(stream)
        stream.upload(memory, source, _BYTES)
        stream.download(target, memory, _BYTES)
        stop.record(stream)
        stop.synchronize()
        same = bool(np.array_equal(target.view(values.shape, values.dtype), values))
        return {"bytes": 2 * _BYTES, "ms": stop.elapsed_ms(start), "same": same}


def _capture(api: CudaApi, device: int) -> dict[str, Any]:
    """A copy that is captured once and launched twice."""
    api.set_device(device)
    with (
        Stream(api=api) as stream,
        PinnedBuffer(1024, api=api) as source,
        PinnedBuffer(1024, api=api) as target,
        DeviceBuffer(1024, api=api) as memory,
    ):
        bytes_ = np.dtype(np.uint8)
        with stream.capture() as captured:
            stream.upload(memory, source, 1024)
            stream.download(target, memory, 1024)
        with captured[0] as graph:
            same = []
            for value in (3, 7):
                source.view((1024,), bytes_)[:] = value
                graph.launch(stream)
                stream.synchronize()
                same.append(bool((target.view((1024,), bytes_) == value).all()))
        return {"same": same}


def _out_of_memory(api: CudaApi, device: int) -> dict[str, Any]:
    """An allocation too large for any GPU, followed by a small one."""
    api.set_device(device)
    message = None
    try:
        DeviceBuffer(_TOO_MANY_BYTES, api=api).close()
    except ResnetOptError as error:
        message = error.message
    with DeviceBuffer(1024, api=api):
        return {"refused": message, "goes on": True}


def _two_threads(api: CudaApi, device: int) -> dict[str, Any]:
    """The round trip in two threads concurrently."""
    outcomes: list[Any] = [None, None]

    def work(number: int) -> None:
        try:
            outcomes[number] = _round_trip(api, device)["same"]
        except ResnetOptError as error:
            outcomes[number] = error.message

    threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"same": outcomes}
