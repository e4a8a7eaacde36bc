"""One engine in a process of its own, a child of `optimizer.processes.Child`.

The harness speaks to it over its pipes (`optimizer.profiling.wire`). The process loads the library
of its engine and no other: two of them in one process disturb each other by a factor of two. It ends
when nothing is asked any more.

Requests (``do``): ``load``, ``prepare``, ``time``, ``layers``. Every answer has ``ok``; a failure
carries the error's kind and message and leaves the process running.
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
from optimizer.profiling.wire import Message, read_message, write_message

__all__ = [
    "Engine",
    "come_to_rest",
    "input_shape",
    "random_batch",
    "serve",
    "time_calls",
]

_RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorflow", "jax")
_RESTING = 0.10  # of a core
_QUIET_STEPS, _REST_STEP_S = 2, 0.005


def time_calls(
    bound: Bound, *, seconds: float, min_calls: int, lead_in_s: float = 0.0, min_lead_in: int = 0
) -> tuple[NDArray[np.int64], int]:
    """Call an engine until the time is over.

    Args:
        bound: The bound batch.
        seconds: How long to go on after the lead-in.
        min_calls: Calls after the lead-in, however long they take.
        lead_in_s: How long to call before that, because the engine measured before left the
            caches, the clocks and the threads in its own state.
        min_lead_in: Calls of the lead-in, however long they take.

    Returns:
        An array of calls x 4 (start on the monotonic clock, upload, compute, download; all in
        nanoseconds), and how many calls at its beginning are the lead-in.
    """
    clock = time.perf_counter_ns
    upload, enqueue, wait, download = bound.upload, bound.enqueue, bound.wait, bound.download
    rows: list[tuple[int, int, int, int]] = []
    lead_in = 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        for least, span_s in ((min_lead_in, lead_in_s), (min_calls, seconds)):
            lead_in = len(rows)
            if least <= 0 and span_s <= 0:
                continue
            end = clock() + int(span_s * 1e9)
            wanted = len(rows) + least
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
                if done >= end and len(rows) >= wanted:
                    break
    finally:
        if collecting:
            gc.enable()
    return np.array(rows, np.int64).reshape(-1, 4), lead_in


def come_to_rest(longest_s: float) -> tuple[float, float]:
    """Wait until the threads of this process have stopped working.

    Thread pools go on spinning for a while after a call, which makes the next one faster and the
    next engine's slower: it must not start before they are done.

    Args:
        longest_s: How long to wait at most.

    Returns:
        Seconds waited, and the share of a core that the threads still use if they did not stop,
        else zero.
    """
    started = time.perf_counter()
    quiet, share = 0, 0.0
    while quiet < _QUIET_STEPS and time.perf_counter() - started < longest_s:
        before, spent = time.perf_counter(), time.process_time()
        time.sleep(_REST_STEP_S)
        share = (time.process_time() - spent) / (time.perf_counter() - before)
        quiet = quiet + 1 if share < _RESTING else 0
    waited = time.perf_counter() - started
    return waited, share if share >= _RESTING else 0.0


def random_batch(spec: TensorSpec, batch: int, image_size: int | None, seed: int) -> NDArray[Any]:
    """Seeded random images in the engine's own layout: normalized float32, or uint8 pixels.

    Raises:
        UsageError: The engine has a fixed batch or image size that is not the asked one, or leaves
            the size open and none is asked for.
    """
    shape = input_shape(spec, batch, image_size)
    generator = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        return generator.integers(0, 256, shape, np.uint8)
    return generator.standard_normal(shape, np.float32)


def input_shape(spec: TensorSpec, batch: int, image_size: int | None) -> tuple[int, ...]:
    """The shape of a batch for this engine; see `random_batch`."""
    wanted: list[int | None] = [batch, *[image_size] * 3]
    wanted[3 if spec.dtype == "uint8" else 1] = 3
    shape = []
    for axis, (fixed, asked) in enumerate(zip(spec.shape, wanted, strict=True)):
        what = "batch" if axis == 0 else "image size"
        if fixed is not None and asked is not None and fixed != asked:
            raise UsageError(f"the engine has the fixed {what} {fixed}, not {asked}")
        value = fixed if fixed is not None else asked
        if value is None:
            raise UsageError("the engine leaves the image size open", hint="give --image-size")
        shape.append(value)
    return tuple(shape)


class Engine:
    """The engine of this process and what it answers."""

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
        """Load the engine: import its library, check its manifest, let the library work."""
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
        """Bind a batch and compute it for the first time."""
        assert self._input is not None, "load comes first"
        assert self._calls is not None
        images = random_batch(self._input, batch, image_size, seed)
        self._images, self._shape = images, images.shape
        started = time.perf_counter()
        self._calls.bind(images)
        self._calls.time(seconds=0, min_calls=1)
        seconds = time.perf_counter() - started
        self._check_outputs()
        # What the libraries have made by now stays: collecting before each block need not look at
        # it again, which takes longer than a short block where PyTorch is loaded.
        gc.collect()
        gc.freeze()
        height = images.shape[1] if self._input.dtype == "uint8" else images.shape[2]
        return {
            "first_inference_ms": seconds * 1e3,
            "image_size": height,
            "notes": list(getattr(self._session, "notes", [])),
        }, {}

    def time(self, *, longest_rest_s: float = 0.0, **limits: Any) -> Message:
        """Time calls; the outputs are checked and memory is read after the last one."""
        assert self._calls is not None, "prepare comes first"
        gc.collect()
        calls, lead_in, stream = self._calls.time(**limits)
        rest_s, busy = come_to_rest(longest_rest_s)
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
            raise UsageError("its backend does not tell the time of layers")
        timed = session.time_layers(self._images, calls)
        come_to_rest(longest_rest_s)
        return {"layers": [layer.model_dump(exclude_defaults=True) for layer in timed]}, {}

    def _check_outputs(self) -> None:
        assert self._calls is not None
        for output in self._calls.outputs():
            if output.ndim != 2 or len(output) != self._shape[0]:
                raise ResnetOptError(f"returned {output.shape} for a batch of {self._shape[0]}")
            bad = int(np.size(output) - np.count_nonzero(np.isfinite(output)))
            if bad:
                raise ResnetOptError(f"returned NaN or infinity in {bad} of {output.size} outputs")


class _OneStream:
    """One call at a time, by the main thread: what `Streams` is for several."""

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


def _answer(engine: Engine, request: dict[str, Any]) -> Message:
    actions: dict[str, Callable[..., Message]] = {
        "load": engine.load,
        "prepare": engine.prepare,
        "time": engine.time,
        "layers": engine.layers,
    }
    try:
        header, arrays = actions[request.pop("do")](**request)
    except Exception as error:  # noqa: BLE001 - any library's error is the answer
        lines = str(error).splitlines() or [""]
        own = isinstance(error, ResnetOptError)
        return {
            "ok": False,
            "kind": type(error).__name__,
            "environment": isinstance(error, EnvironmentFault),
            "usage": isinstance(error, UsageError),
            "message": lines[0] if own else f"{type(error).__name__}: {lines[0]}"[:500],
        }, {}
    return {"ok": True, **header}, arrays


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    engine = Engine()
    write_message(answers, {"ok": True, "ready_ns": time.perf_counter_ns()})
    while (message := read_message(requests)) is not None:
        write_message(answers, *_answer(engine, message[0]))
