"""A loaded engine with one CUDA stream; batches are split or padded to fit its profiles."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.engines.batching import check_batch
from optimizer.engines.cuda import Event, Graph, Stream
from optimizer.engines.cuda_bindings import CudaApi
from optimizer.engines.protocol import Array, TensorSpec
from optimizer.engines.tensorrt.binding import Binding
from optimizer.engines.tensorrt.execution import Execution, silence
from optimizer.engines.tensorrt.inspector import inspect_engine
from optimizer.engines.tensorrt.layer_times import attach_profiler, with_times
from optimizer.engines.tensorrt.layers import describe
from optimizer.engines.tensorrt.log import BuildLog
from optimizer.engines.tensorrt.profiles import ProfileRange, pick_profile
from optimizer.errors import ResnetOptError, UsageError
from optimizer.results import LayerInfo

__all__ = ["OpenEngine", "TensorRtBound", "TensorRtSession"]


@dataclass(frozen=True, kw_only=True)
class OpenEngine:
    """An opened engine and its resources, which a session takes ownership of.

    Attributes:
        trt: The library's module.
        engine: The deserialized engine.
        make_context: Creates an execution context; returns ``None`` if the library cannot.
        make_timing_context: The same for layer times; ``None`` to use ``make_context``.
        api: The CUDA API.
        device: Index of the GPU.
        cuda_graph: Whether to capture bound batches as CUDA graphs.
        keep_alive: Objects that must outlive the engine.
        on_close: Called once when the session is closed.
        log: The log that the library's logger writes to.
    """

    trt: Any
    engine: Any
    make_context: Callable[[], Any]
    make_timing_context: Callable[[], Any] | None = None
    api: CudaApi
    device: int = 0
    cuda_graph: bool = False
    keep_alive: tuple[Any, ...] = ()
    on_close: Callable[[], None] | None = None
    log: BuildLog = field(default_factory=BuildLog)


class TensorRtSession:
    """See `optimizer.engines.protocol.Session`.

    The first thread that uses the session owns it: an execution context is not thread-safe, and the
    current GPU is a property of the thread.

    Attributes:
        notes: Deviations from what was requested (a CUDA graph that could not be captured).

    Raises:
        ResnetOptError: No execution context or stream could be created, for lack of memory.
    """

    def __init__(self, opened: OpenEngine) -> None:
        self._opened: OpenEngine | None = opened
        self._api = opened.api
        self._device = opened.device
        self._log = opened.log
        self._owner: int | None = None
        self._scratch: Binding | None = None
        self._bound: list[TensorRtBound] = []
        self._timing: tuple[Execution, Any] | None = None
        self.notes: list[str] = []
        self.cuda_graph = opened.cuda_graph
        self.input, self.output = _tensors(opened.trt, opened.engine)
        self.profiles = _profiles(opened.engine, self.input.name)
        self._api.set_device(self._device)
        self.stream = Stream(api=self._api)
        try:
            self._execution = self._new_execution(
                opened.make_context, before_change=self._drop_graphs
            )
            silence(opened.trt, self._execution.context)
        except BaseException:
            _close_anyway(self.stream.close)
            raise

    def run(self, batch: Array) -> Array:
        """See `Session.run`; a batch too large for the profiles is split, one too small is padded."""
        self._claim()
        check_batch(batch, self.input)
        outputs = []
        start = 0
        while start < len(batch):
            profile, images = pick_profile(self.profiles, len(batch) - start)
            part = batch[start : start + images]
            binding = self._reusable(profile, images)
            binding.fill(part)
            binding.upload()
            self._execution.start(binding)
            binding.download()
            self.stream.synchronize()
            outputs.append(binding.output(len(part)))
            start += len(part)
        return np.concatenate(outputs)

    def bind(self, batch: Array) -> TensorRtBound:
        """See `Session.bind`.

        Raises:
            UsageError: The batch is larger than the engine's profiles allow.
        """
        self._claim()
        check_batch(batch, self.input)
        profile, images = pick_profile(self.profiles, len(batch))
        if images < len(batch):
            raise UsageError(
                f"a batch of {len(batch)} is larger than the engine's maximum of {images}",
                hint=f"--batch {images}, or build with --profile 1:{len(batch)}:{len(batch)}",
            )
        binding = Binding(self.stream, self.input, self.output, profile, images)
        binding.fill(batch)
        bound = TensorRtBound(self, self._execution, binding, len(batch))
        self._bound.append(bound)
        return bound

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers`; ``bytes`` are per image."""
        self._claim()
        return self._inspected(images=1)

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """See `TimesLayers.time_layers`: GPU times from the library's profiler.

        The profiler serializes the layers, so their sum exceeds the time of a run. It has its own
        execution context, because the library cannot detach a profiler.
        """
        if calls < 1:
            raise UsageError(f"{calls} calls time no layer", hint="1 or more")
        timing, profiler = self._timing_execution()
        bound = self.bind(batch)
        try:
            bound.upload()
            profiler.runs.clear()
            for _ in range(1 + calls):
                profiler.runs.append({})
                timing.start(bound.binding)
                self.stream.synchronize()
            runs = profiler.runs[1:]  # the first run of a shape may still compile
            profile = bound.binding.profile
        finally:
            timing.forget(bound.binding)
            bound.close()
        return with_times(self._inspected(images=len(batch)), runs, profile=profile.index)

    def close(self) -> None:
        """See `Session.close`.

        Everything is freed even if the device fails: such an error was caused by an earlier call.
        """
        opened, self._opened = self._opened, None
        if opened is None:
            return
        with contextlib.ExitStack() as closing:
            for resource in (self.stream, self._scratch, *self._bound):
                if resource is not None:
                    closing.callback(_close_anyway, resource.close)
            closing.callback(self._forget_contexts)
            if opened.on_close is not None:
                closing.callback(opened.on_close)
            closing.callback(_close_anyway, self.stream.synchronize)
            closing.callback(_close_anyway, lambda: self._api.set_device(self._device))
        # The engine is freed with ``opened``: after its contexts, and before its runtime.

    def _forget_contexts(self) -> None:
        self._execution.context = None
        if self._timing is not None:
            self._timing[0].context = None

    def _inspected(self, images: int) -> list[LayerInfo]:
        """All layers, inspected at the optimal batch size of the first profile."""
        assert self._opened is not None
        profile = self.profiles[0]
        shape = (profile.best, *(d or -1 for d in self.input.shape[1:]))
        self._execution.set_shape(profile, shape)
        raw = inspect_engine(self._opened.trt, self._opened.engine, self._execution.context)
        return describe(raw, batch=profile.best, images=images)

    def _timing_execution(self) -> tuple[Execution, Any]:
        """The execution for layer times and its profiler, created on first use."""
        self._claim()
        assert self._opened is not None
        if self._timing is None:
            timing = self._new_execution(
                self._opened.make_timing_context or self._opened.make_context
            )
            self._timing = timing, attach_profiler(self._opened.trt, timing.context)
        return self._timing

    def _new_execution(
        self,
        make_context: Callable[[], Any],
        before_change: Callable[[], None] = lambda: None,
    ) -> Execution:
        position = self._log.position
        context = make_context()
        if context is None:
            reason = self._log.reason_since(position, "no reason given")
            raise ResnetOptError(
                f"cannot create an execution context of the engine: {reason}",
                hint="use a smaller profile or fewer streams, or free memory on the GPU",
            )
        return Execution(
            context,
            stream=self.stream,
            source=self.input,
            target=self.output,
            profiles=self.profiles,
            log=self._log,
            before_change=before_change,
        )

    def _drop_graphs(self) -> None:
        """Drop the captured graphs; the next call captures them again."""
        for bound in self._bound:
            bound._drop_graph()  # noqa: SLF001 - closely coupled classes

    def _forget(self, bound: TensorRtBound) -> None:
        """Remove a closed bound batch."""
        if bound in self._bound:
            self._bound.remove(bound)
        self._execution.forget(bound.binding)

    def _check_owner(self) -> None:
        """Check that the session is open and used by its owner thread.

        Raises:
            UsageError: It is closed, or belongs to another thread.
        """
        if self._opened is None:
            raise UsageError("this session is closed", hint="open the engine again")
        me = threading.get_ident()
        if self._owner is None:
            self._owner = me
        if self._owner != me:
            raise UsageError(
                "this session belongs to another thread", hint="open one session per thread"
            )

    def _claim(self) -> None:
        self._check_owner()
        self._api.set_device(self._device)

    def _reusable(self, profile: ProfileRange, images: int) -> Binding:
        binding = self._scratch
        if binding is not None and (binding.profile, binding.images) == (profile, images):
            return binding
        if binding is not None:
            self._scratch = None
            self._execution.forget(binding)
            binding.close()
        self._scratch = Binding(self.stream, self.input, self.output, profile, images)
        return self._scratch


def _close_anyway(close: Callable[[], None]) -> None:
    with contextlib.suppress(ResnetOptError):
        close()


class TensorRtBound:
    """See `optimizer.engines.protocol.Bound`."""

    def __init__(
        self, session: TensorRtSession, execution: Execution, binding: Binding, count: int
    ) -> None:
        self._session = session
        self._execution = execution
        self._stream = session.stream
        self._count = count
        self._graph: Graph | None = None
        self._is_open = True
        self.binding = binding

    def upload(self) -> None:
        """See `Bound.upload`."""
        self._check_open()
        self.binding.upload()
        self._stream.synchronize()

    def enqueue(self) -> None:
        """See `Bound.enqueue`; with CUDA graphs, the first call captures what later calls launch."""
        self._check_open()
        if self._graph is not None:
            self._graph.launch(self._stream)
        elif self._session.cuda_graph:
            self._capture_and_start()
        else:
            self._execution.start(self.binding)

    def wait(self) -> None:
        """See `Bound.wait`."""
        self._check_open()
        self._stream.synchronize()

    def download(self) -> None:
        """See `Bound.download`."""
        self._check_open()
        self.binding.download()
        self._stream.synchronize()

    def output(self) -> Array:
        """See `Bound.output`."""
        self._check_open()
        return self.binding.output(self._count)

    def gpu_ms(self) -> float:
        """Compute once and return the GPU time in milliseconds, without copies."""
        self._check_open()
        api = self._stream.api
        with Event(api=api) as start, Event(api=api) as stop:
            start.record(self._stream)
            self.enqueue()
            stop.record(self._stream)
            stop.synchronize()
            return stop.elapsed_ms(start)

    def close(self) -> None:
        """Free the memory; calling it again does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        with contextlib.ExitStack() as closing:
            closing.callback(self._session._forget, self)  # noqa: SLF001 - closely coupled classes
            closing.callback(_close_anyway, self.binding.close)
            closing.callback(_close_anyway, self._drop_graph)

    def _check_open(self) -> None:
        self._session._check_owner()  # noqa: SLF001 - closely coupled classes
        if not self._is_open:
            raise UsageError("this bound batch is closed", hint="bind the batch again")

    def _drop_graph(self) -> None:
        """Drop the captured graph, if there is one."""
        if self._graph is not None:
            graph, self._graph = self._graph, None
            graph.close()

    def _capture_and_start(self) -> None:
        """Capture the computation as a graph and launch it; without a graph if capturing fails.

        Raises:
            ResnetOptError: It cannot be computed without a graph either.
        """
        # The first run may allocate memory and load kernels, which must not happen during capture.
        self._execution.start(self.binding)
        self._stream.synchronize()
        try:
            with self._stream.capture() as captured:
                self._execution.start(self.binding)
        except ResnetOptError as error:
            # Raises if the device failed, not just the capture. The run above is the requested one.
            self._stream.synchronize()
            self._session.cuda_graph = False
            self._session.notes.append(
                f"cannot be captured as a CUDA graph, started without one: {error.message}"
            )
            return
        self._graph = captured[0]
        self._graph.launch(self._stream)


def _tensors(trt: Any, engine: Any) -> tuple[TensorSpec, TensorSpec]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    outputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
    if len(inputs) != 1 or len(outputs) != 1:
        raise UsageError(
            f"the engine has inputs {inputs} and outputs {outputs}, a classifier has one of each"
        )
    return _spec(trt, engine, inputs[0]), _spec(trt, engine, outputs[0])


def _spec(trt: Any, engine: Any, name: str) -> TensorSpec:
    shape = tuple(None if d < 0 else int(d) for d in engine.get_tensor_shape(name))
    return TensorSpec(name, shape, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name)


def _profiles(engine: Any, name: str) -> list[ProfileRange]:
    fixed = int(engine.get_tensor_shape(name)[0])
    ranges = []
    for index in range(engine.num_optimization_profiles):
        if (
            fixed > 0
        ):  # what a profile states for a shape without a dynamic dimension is not documented
            low = best = high = fixed
        else:
            low, best, high = (int(d[0]) for d in engine.get_tensor_profile_shape(name, index))
        ranges.append(ProfileRange(index, low, best, high))
    return ranges
