"""The worker: runs one engine in its own process, started by `optimizer.processes.Child`.

The harness sends requests over pipes (`optimizer.profiling.worker_messages`). The process loads only its own
engine's library: two runtimes in one process slow each other down by up to a factor of two. It ends
when its input is closed.

Requests (``do``): ``load``, ``prepare``, ``time``, ``layers``. Every response has ``ok``; a failed
request returns the type and message of the error, and the process keeps running.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from optimizer.engines import Bound, Opening, Session, TensorSpec, TimesLayers, open_streams
from optimizer.errors import EnvironmentFault, ResnetOptError, UsageError
from optimizer.processes import memory_bytes
from optimizer.profiling.streams import Streams
from optimizer.profiling.worker_messages import Message, read_message, write_message

__all__ = [
    "Engine",
    "input_shape",
    "random_batch",
    "serve",
    "time_calls",
    "wait_until_idle",
]

_RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorflow", "jax")
_IDLE_SHARE = 0.10  # of a core
_QUIET_STEPS, _REST_STEP_S = 2, 0.005


def time_calls(
    bound: Bound, *, seconds: float, min_calls: int, lead_in_s: float = 0.0, min_lead_in: int = 0
) -> tuple[NDArray[np.int64], int]:
    """Call an engine repeatedly and time each call.

    Args:
        bound: The bound batch.
        seconds: Duration after the lead-in.
        min_calls: Minimum number of calls after the lead-in.
        lead_in_s: Duration of the lead-in, which absorbs the state of caches, clocks and threads
            left by the engine measured before.
        min_lead_in: Minimum number of lead-in calls.

    Returns:
        An array of calls x 4 (start on the monotonic clock, upload, compute, download; all in
        nanoseconds), and the number of lead-in calls at its beginning.
    """
    clock = time.perf_counter_ns
    upload, enqueue, wait, download = bound.upload, bound.enqueue, bound.wait, bound.download
    rows: list[tuple[int, int, int, int]] = []
    lead_in = 0
    gc_enabled = gc.isenabled()
    gc.disable()
    try:
        for min_rows, span_s in ((min_lead_in, lead_in_s), (min_calls, seconds)):
            lead_in = len(rows)
            if min_rows <= 0 and span_s <= 0:
                continue
            end = clock() + int(span_s * 1e9)
            required = len(rows) + min_rows
            while True:
                start = clock()
                upload()
                uploaded = clock()
                enqueue()
                wait()
                computed = clock()
                download()
                done = clock()
                rows.append((start, uploaded - start, computed - uploaded, done - computed))
                if done >= end and len(rows) >= required:
                    break
    finally:
        if gc_enabled:
            gc.enable()
    return np.array(rows, np.int64).reshape(-1, 4), lead_in


def wait_until_idle(max_wait_s: float) -> tuple[float, float]:
    """Wait until the threads of this process are idle.

    Thread pools keep spinning for a while after a call. This would slow down the engine that is
    measured next, so it must not start before they stop.

    Args:
        max_wait_s: Longest time to wait.

    Returns:
        Seconds waited, and the share of a core that the threads still use (zero if they are idle).
    """
    started = time.perf_counter()
    quiet, share = 0, 0.0
    while quiet < _QUIET_STEPS and time.perf_counter() - started < max_wait_s:
        before, spent = time.perf_counter(), time.process_time()
        time.sleep(_REST_STEP_S)
        share = (time.process_time() - spent) / (time.perf_counter() - before)
        quiet = quiet + 1 if share < _IDLE_SHARE else 0
    waited = time.perf_counter() - started
    return waited, share if share >= _IDLE_SHARE else 0.0


def random_batch(spec: TensorSpec, batch: int, image_size: int | None, seed: int) -> NDArray[Any]:
    """Seeded random images in the engine's input layout: standard normal float32, or uint8 pixels.

    Raises:
        UsageError: The engine has a different fixed batch or image size, or has a dynamic image
            size and ``image_size`` is ``None``.
    """
    shape = input_shape(spec, batch, image_size)
    generator = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        return generator.integers(0, 256, shape, np.uint8)
    return generator.standard_normal(shape, np.float32)


def input_shape(spec: TensorSpec, batch: int, image_size: int | None) -> tuple[int, ...]:
    """The shape of a batch for this engine; raises `UsageError` as `random_batch` does."""
    requested: list[int | None] = [batch, *[image_size] * 3]
    requested[3 if spec.dtype == "uint8" else 1] = 3
    shape = []
    for axis, (fixed, wanted) in enumerate(zip(spec.shape, requested, strict=True)):
        label = "batch" if axis == 0 else "image size"
        if fixed is not None and wanted is not None and fixed != wanted:
            raise UsageError(f"the engine has the fixed {label} {fixed}, not {wanted}")
        value = fixed if fixed is not None else wanted
        if value is None:
            raise UsageError("the engine has a dynamic image size", hint="set --image-size")
        shape.append(value)
    return tuple(shape)


class Engine:
    """The engine of this process and the requests it supports."""

    def __init__(self) -> None:
        self._calls: _OneStream | Streams | None = None
        self._input: TensorSpec | None = None
        self._session: Session | None = None
        self._images: NDArray[Any] | None = None
        self._shape: tuple[int, ...] = ()

    def load(
        self,
        path: str,
        threads: int | None,
        device: str | None,
        streams: int = 1,
        variant: str | None = None,
        cache: str | None = None,
    ) -> Message:
        """Check the manifest, import the library and load the engine."""
        opening = Opening(variant, None if cache is None else Path(cache))
        started = time.perf_counter()
        sessions = open_streams(
            Path(path), streams, threads=threads, device=device, opening=opening
        )
        seconds = time.perf_counter() - started
        self._calls = Streams(sessions, time_calls) if streams > 1 else _OneStream(sessions[0])
        self._session = sessions[0]
        self._input = spec = sessions[0].input
        return {
            "load_s": seconds,
            "input": [spec.name, list(spec.shape), spec.dtype],
            "runtimes": [name for name in _RUNTIMES if name in sys.modules],
        }, {}

    def prepare(self, batch: int, image_size: int | None, seed: int) -> Message:
        """Bind a batch and run the first inference."""
        assert self._input is not None, "load comes first"
        assert self._calls is not None
        images = random_batch(self._input, batch, image_size, seed)
        self._images, self._shape = images, images.shape
        started = time.perf_counter()
        self._calls.bind(images)
        self._calls.time(seconds=0, min_calls=1)
        seconds = time.perf_counter() - started
        self._check_outputs()
        # Exclude the libraries' objects from garbage collection: with PyTorch loaded, collecting
        # them before each block would take longer than a short block.
        gc.collect()
        gc.freeze()
        height = images.shape[1] if self._input.dtype == "uint8" else images.shape[2]
        return {
            "first_inference_ms": seconds * 1e3,
            "image_size": height,
            "notes": list(getattr(self._session, "notes", [])),
        }, {}

    def time(self, *, longest_rest_s: float = 0.0, **limits: Any) -> Message:
        """Time calls, then check the outputs and read memory use."""
        assert self._calls is not None, "prepare comes first"
        gc.collect()
        calls, lead_in, stream = self._calls.time(**limits)
        rest_s, busy = wait_until_idle(longest_rest_s)
        self._check_outputs()
        peak, now = memory_bytes()
        return {
            "lead_in": lead_in,
            "rest_s": rest_s,
            "busy": busy,
            "peak_rss_bytes": peak,
            "rss_bytes": now,
        }, {"calls": calls, "stream": stream}

    def layers(self, calls: int, longest_rest_s: float) -> Message:
        """Time the layers; see `optimizer.engines.TimesLayers`."""
        assert self._images is not None, "prepare comes first"
        session: object = self._session
        if not isinstance(session, TimesLayers):
            raise UsageError("its backend does not report layer times")
        timed = session.time_layers(self._images, calls)
        wait_until_idle(longest_rest_s)
        return {"layers": [layer.model_dump(exclude_defaults=True) for layer in timed]}, {}

    def _check_outputs(self) -> None:
        assert self._calls is not None
        for output in self._calls.outputs():
            if output.ndim < 2 or len(output) != self._shape[0]:
                raise ResnetOptError(f"returned {output.shape} for a batch of {self._shape[0]}")
            bad = int(np.size(output) - np.count_nonzero(np.isfinite(output)))
            if bad:
                raise ResnetOptError(f"returned NaN or infinity in {bad} of {output.size} outputs")


class _OneStream:
    """One call at a time in the main thread; same interface as `Streams`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._bound: Bound | None = None

    def bind(self, images: NDArray[Any]) -> None:
        self._bound = self._session.bind(images)

    def time(self, **limits: Any) -> tuple[NDArray[np.int64], int, NDArray[np.int32]]:
        assert self._bound is not None
        calls, lead_in = time_calls(self._bound, **limits)
        return calls, lead_in, np.zeros(len(calls), np.int32)

    def outputs(self) -> list[NDArray[Any]]:
        assert self._bound is not None
        return [self._bound.output()]


def _respond(engine: Engine, request: dict[str, Any]) -> Message:
    actions: dict[str, Callable[..., Message]] = {
        "load": engine.load,
        "prepare": engine.prepare,
        "time": engine.time,
        "layers": engine.layers,
    }
    try:
        header, arrays = actions[request.pop("do")](**request)
    except Exception as error:  # noqa: BLE001 - reported to the harness
        lines = str(error).splitlines() or [""]
        is_ours = isinstance(error, ResnetOptError)
        return {
            "ok": False,
            "kind": type(error).__name__,
            "environment": isinstance(error, EnvironmentFault),
            "usage": isinstance(error, UsageError),
            "message": lines[0] if is_ours else f"{type(error).__name__}: {lines[0]}"[:500],
        }, {}
    return {"ok": True, **header}, arrays


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Handle requests until the stream ends."""
    engine = Engine()
    write_message(answers, {"ok": True, "ready_ns": time.perf_counter_ns()})
    while (message := read_message(requests)) is not None:
        write_message(answers, *_respond(engine, message[0]))
