"""One execution context: the batch it is set to, and how it is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optimizer.engines.cuda import Stream
from optimizer.engines.protocol import TensorSpec
from optimizer.engines.tensorrt.binding import Binding
from optimizer.engines.tensorrt.log import BuildLog
from optimizer.engines.tensorrt.profiles import ProfileRange
from optimizer.errors import ResnetOptError

__all__ = ["Execution", "silence"]


class Execution:
    """An execution context on a stream.

    Every call of the library may refuse, and most say so by returning false: each is checked, and
    the reason is what this thread wrote into the log meanwhile.

    Args:
        context: The execution context; it belongs to this object alone.
        stream: Where it computes.
        source, target: The engine's input and output.
        profiles: The engine's optimization profiles.
        log: What the library's logger writes into.
        before_change: Called before the context gets another shape or other addresses.
    """

    def __init__(
        self,
        context: Any,
        *,
        stream: Stream,
        source: TensorSpec,
        target: TensorSpec,
        profiles: Sequence[ProfileRange],
        log: BuildLog,
        before_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.context = context
        self._stream = stream
        self._source = source
        self._target = target
        self._profiles = profiles
        self._log = log
        self._before_change = before_change
        self._active: Binding | None = None
        self._since = 0

    def start(self, binding: Binding) -> None:
        """Put one computation into the stream.

        Raises:
            ResnetOptError: The library refuses.
        """
        if binding is not self._active:
            self._activate(binding)
        self._since = self._log.position
        if not self.context.execute_async_v3(self._stream.handle):
            raise self._failed("start the computation")

    def forget(self, binding: Binding) -> None:
        """Remember no longer that the context is set to this batch: its memory goes away."""
        if self._active is binding:
            self._active = None

    def set_shape(self, profile: ProfileRange, shape: tuple[int, ...]) -> None:
        """Set the context to a profile and an input shape, without memory.

        Raises:
            ResnetOptError: The library refuses.
        """
        self._before_change()
        self._active = None
        self._since = self._log.position
        context = self.context
        if len(self._profiles) > 1 and context.active_optimization_profile != profile.index:
            self._switch(profile)
        if not context.set_input_shape(self._source.name, shape):
            raise self._failed(f"take the shape {shape}")
        if context.infer_shapes():
            raise self._failed("infer its shapes")

    def _activate(self, binding: Binding) -> None:
        # A recorded graph reads the context's addresses and shape as they were: NVIDIA's guide calls
        # launching it after they were changed undefined.
        self.set_shape(binding.profile, binding.input_shape)
        for spec, buffer in (
            (self._source, binding.device_input),
            (self._target, binding.device_output),
        ):
            if not self.context.set_tensor_address(spec.name, buffer.handle):
                raise self._failed(f"take the memory of {spec.name}")
        self._active = binding

    def _switch(self, profile: ProfileRange) -> None:
        what = f"switch to profile {profile.index}"
        try:
            # The Python binding raises where the C++ function returns false.
            switched = self.context.set_optimization_profile_async(
                profile.index, self._stream.handle
            )
        except RuntimeError as error:
            raise self._failed(what, str(error)) from error
        if not switched:
            raise self._failed(what)
        self._stream.synchronize()

    def _failed(self, what: str, otherwise: str = "the library does not say why") -> ResnetOptError:
        reason = self._log.reason_since(self._since, otherwise)
        return ResnetOptError(f"the engine cannot {what}: {reason}")


def silence(trt: Any, context: Any) -> None:
    """Let a context do nothing for NVIDIA's profilers.

    Engines are built to list all of their layers, and a context of such an engine would mark every
    kernel by name as well, which is work of the host in every call.
    """
    context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
