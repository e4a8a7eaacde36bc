"""A loaded engine: named tensors, one stream, batches fitted to the profiles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from optimizer.engines.batching import check_batch
from optimizer.engines.cuda import DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from optimizer.engines.cuda_bindings import CudaApi
from optimizer.engines.protocol import Array, TensorSpec
from optimizer.engines.tensorrt.inspector import inspect_engine
from optimizer.engines.tensorrt.layers import describe
from optimizer.engines.tensorrt.log import BuildLog
from optimizer.engines.tensorrt.profiles import ProfileRange, pick_profile
from optimizer.errors import ResnetOptError, UsageError
from optimizer.results import LayerInfo

__all__ = ["TensorRtBound", "TensorRtSession"]


class TensorRtSession:
    """See `optimizer.engines.protocol.Session`.

    The first thread that computes owns the session: an execution context is not safe to share, and
    the current GPU is a property of the thread.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        context: Any,
        *,
        api: CudaApi,
        device: int = 0,
        cuda_graph: bool = False,
        keep_alive: tuple[Any, ...] = (),
        on_close: Callable[[], None] | None = None,
        log: BuildLog | None = None,
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._context = context
        self._api = api
        self._device = device
        self._keep_alive = keep_alive
        self._on_close = on_close
        self._log = log or BuildLog()
        self._owner: int | None = None
        self._active: _Binding | None = None
        self._scratch: _Binding | None = None
        self._bound: list[TensorRtBound] = []
        self.cuda_graph = cuda_graph
        self.input, self.output = _tensors(trt, engine)
        self.profiles = _profiles(engine, self.input.name)
        api.set_device(device)
        self.stream = Stream(api=api)

    def run(self, batch: Array) -> Array:
        """See `Session.run`; a batch beyond the profiles is split, one below them is padded."""
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
            self.execute(binding)
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
                mend=f"--batch {images}, or build with --profile 1:{len(batch)}:{len(batch)}",
            )
        binding = _Binding(self, profile, images)
        binding.fill(batch)
        bound = TensorRtBound(self, binding, len(batch))
        self._bound.append(bound)
        return bound

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers`."""
        self._claim()
        return describe(inspect_engine(self._trt, self._engine), batch=self.input.shape[0] or 1)

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """See `TimesLayers.time_layers`: the GPU's own time, from the library's profiler.

        The profiler makes the layers wait for each other, so their sum is more than a run takes.
        """
        bound = self.bind(batch)
        profiler = _make_profiler(self._trt)
        try:
            bound.upload()
            self.execute(bound.binding)  # the first run of a shape may still compile
            self.stream.synchronize()
            self.drop_graphs()  # recorded without a profiler
            self._context.profiler = profiler
            for _ in range(calls):
                profiler.runs.append({})
                self.execute(bound.binding)
                self.stream.synchronize()
        finally:
            self._context.profiler = None
            bound.close()
        return self._timed(profiler.runs, len(batch))

    def _timed(self, runs: list[dict[str, float]], images: int) -> list[LayerInfo]:
        names = dict.fromkeys(name for run in runs for name in run)
        times = {name: median(run.get(name, 0.0) for run in runs) for name in names}
        raw = inspect_engine(self._trt, self._engine)
        known = describe(raw, batch=self.input.shape[0] or 1, images=images)
        timed = [
            layer.model_copy(update={"time_ms": times.pop(layer.name)})
            for layer in known
            if layer.name in times
        ]
        return timed + [
            LayerInfo(name=name, type="unknown", precision="unknown", time_ms=spent)
            for name, spent in times.items()
        ]

    def execute(self, binding: _Binding) -> None:
        """Put one computation into the stream."""
        self._activate(binding)
        if not self._context.execute_async_v3(self.stream.handle):
            raise self._failed("start the computation")

    def close(self) -> None:
        """See `Session.close`."""
        if self._engine is None:
            return
        self._api.set_device(self._device)
        self.stream.synchronize()
        if self._on_close is not None:
            self._on_close()
        for bound in list(self._bound):
            bound.close()
        if self._scratch is not None:
            self._scratch.close()
        self.stream.close()
        # In this order: a context outlived by its engine, an engine by its runtime.
        self._context = None
        self._engine = None
        self._keep_alive = ()

    def drop_graphs(self) -> None:
        """Forget what was recorded; it is recorded anew when it is computed next."""
        for bound in self._bound:
            bound.drop_graph()

    def forget(self, bound: TensorRtBound) -> None:
        """Drop a bound batch that was closed."""
        self._bound.remove(bound)
        if self._active is bound.binding:
            self._active = None

    def check_owner(self) -> None:
        """Refuse a closed session and any thread but the one that computed first.

        Raises:
            UsageError: As the message says.
        """
        if self._engine is None:
            raise UsageError("this session is closed", mend="open the engine again")
        me = threading.get_ident()
        if self._owner is None:
            self._owner = me
        if self._owner != me:
            raise UsageError(
                "this session belongs to another thread", mend="open one session per thread"
            )

    def _claim(self) -> None:
        self.check_owner()
        self._api.set_device(self._device)

    def _reusable(self, profile: ProfileRange, images: int) -> _Binding:
        binding = self._scratch
        if binding is None or (binding.profile, binding.images) != (profile, images):
            if binding is not None:
                binding.close()
                self._active = None
            binding = self._scratch = _Binding(self, profile, images)
        return binding

    def _activate(self, binding: _Binding) -> None:
        """Make the context compute a binding; nothing is called if it does already."""
        if binding is self._active:
            return
        # A recorded graph reads the context's addresses and shape as they were: NVIDIA's guide calls
        # launching it after they were changed undefined.
        self.drop_graphs()
        context = self._context
        if len(self.profiles) > 1 and context.active_optimization_profile != binding.profile.index:
            if not context.set_optimization_profile_async(
                binding.profile.index, self.stream.handle
            ):
                raise self._failed(f"switch to profile {binding.profile.index}")
            self.stream.synchronize()
        shape = (binding.images, *self.input.shape[1:])
        if not context.set_input_shape(self.input.name, shape):
            raise self._failed(f"take the shape {shape}")
        if context.infer_shapes():
            raise self._failed("infer its shapes")
        context.set_tensor_address(self.input.name, binding.device_input.handle)
        context.set_tensor_address(self.output.name, binding.device_output.handle)
        self._active = binding

    def _failed(self, what: str) -> ResnetOptError:
        reason = self._log.reason("the library does not say why")
        return ResnetOptError(f"the engine cannot {what}: {reason}")


class _Binding:
    """Memory for one batch size, on the host and on the device."""

    def __init__(self, session: TensorRtSession, profile: ProfileRange, images: int) -> None:
        self.profile = profile
        self.images = images
        self._stream = session.stream
        api = session.stream.api
        self._in_shape = _sized(session.input, images)
        self._out_shape = _sized(session.output, images)
        self._in_dtype = np.dtype(session.input.dtype)
        self._out_dtype = np.dtype(session.output.dtype)
        self._in_bytes = int(np.prod(self._in_shape)) * self._in_dtype.itemsize
        self._out_bytes = int(np.prod(self._out_shape)) * self._out_dtype.itemsize
        self.device_input = DeviceBuffer(self._in_bytes, api=api)
        self.device_output = DeviceBuffer(self._out_bytes, api=api)
        self._host_input = PinnedBuffer(self._in_bytes, api=api)
        self._host_output = PinnedBuffer(self._out_bytes, api=api)

    def fill(self, batch: Array) -> None:
        """Write a batch into the host buffer; what is missing is filled with its last image."""
        view = self._host_input.view(self._in_shape, self._in_dtype)
        view[: len(batch)] = batch
        view[len(batch) :] = batch[-1:]

    def upload(self) -> None:
        """Start the copy to the device."""
        self._stream.upload(self.device_input, self._host_input, self._in_bytes)

    def download(self) -> None:
        """Start the copy to the host."""
        self._stream.download(self._host_output, self.device_output, self._out_bytes)

    def output(self, count: int) -> Array:
        """The first rows of the host buffer, a new float32 array."""
        view = self._host_output.view(self._out_shape, self._out_dtype)
        return np.array(view[:count], dtype=np.float32)

    def close(self) -> None:
        """Free the memory."""
        for buffer in (self.device_input, self.device_output, self._host_input, self._host_output):
            buffer.close()


class TensorRtBound:
    """See `optimizer.engines.protocol.Bound`."""

    def __init__(self, session: TensorRtSession, binding: _Binding, count: int) -> None:
        self._session = session
        self._count = count
        self._graph: Graph | None = None
        self.binding = binding

    def upload(self) -> None:
        """See `Bound.upload`."""
        self._session.check_owner()
        self.binding.upload()
        self._session.stream.synchronize()

    def enqueue(self) -> None:
        """See `Bound.enqueue`; with CUDA graphs, the first call records what later ones start."""
        self._session.check_owner()
        if not self._session.cuda_graph:
            self._session.execute(self.binding)
            return
        if self._graph is None:
            self._graph = self._record()
        self._graph.launch(self._session.stream)

    def wait(self) -> None:
        """See `Bound.wait`."""
        self._session.check_owner()
        self._session.stream.synchronize()

    def download(self) -> None:
        """See `Bound.download`."""
        self._session.check_owner()
        self.binding.download()
        self._session.stream.synchronize()

    def output(self) -> Array:
        """See `Bound.output`."""
        return self.binding.output(self._count)

    def gpu_ms(self) -> float:
        """Compute once and return the GPU's own time for it, milliseconds, copies not included."""
        api = self._session.stream.api
        with Event(api=api) as start, Event(api=api) as stop:
            start.record(self._session.stream)
            self.enqueue()
            stop.record(self._session.stream)
            stop.synchronize()
            return stop.elapsed_ms(start)

    def close(self) -> None:
        """Free the memory; calling it again does nothing."""
        if self not in self._session._bound:  # noqa: SLF001 - two halves of one thing
            return
        self.drop_graph()
        self.binding.close()
        self._session.forget(self)

    def drop_graph(self) -> None:
        """Forget the recorded graph, if there is one."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _record(self) -> Graph:
        session = self._session
        # Memory that the first run allocates, and kernels it loads, may not be part of a graph.
        session.execute(self.binding)
        session.stream.synchronize()
        with session.stream.capture() as captured:
            session.execute(self.binding)
        return captured[0]


def _make_profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.runs: list[dict[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            run = self.runs[-1]
            run[layer_name] = run.get(layer_name, 0.0) + ms

    return Profiler()


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
    found = []
    for index in range(engine.num_optimization_profiles):
        low, best, high = engine.get_tensor_profile_shape(name, index)
        found.append(ProfileRange(index, int(low[0]), int(best[0]), int(high[0])))
    return found


def _sized(spec: TensorSpec, images: int) -> tuple[int, ...]:
    rest = spec.shape[1:]
    if any(d is None for d in rest):
        raise UsageError(f"the engine's {spec.name} has a dynamic size beside its batch")
    return (images, *(int(d) for d in rest if d is not None))
