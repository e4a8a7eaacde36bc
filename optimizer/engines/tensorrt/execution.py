"""An execution context: tracks the batch it is set up for, and starts it."""

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

    Every call to the library may fail, and most return false then: each is checked, and the reason
    is what this thread logged during the call.

    Args:
        context: The execution context, owned by this object.
        stream: The stream it runs on.
        source, target: The engine's input and output.
        profiles: The engine's optimization profiles.
        log: The log that the library's logger writes to.
        before_change: Called before the shape or the addresses of the context change.
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
        """Enqueue one inference on the stream.

        Raises:
            ResnetOptError: The library rejects it.
        """
        if binding is not self._active:
            self._activate(binding)
        self._since = self._log.position
        if not self.context.execute_async_v3(self._stream.handle):
            raise self._failed("start the computation")

    def forget(self, binding: Binding) -> None:
        """Forget that the context is set up for this batch, whose memory is about to be freed."""
        if self._active is binding:
            self._active = None

    def set_shape(self, profile: ProfileRange, shape: tuple[int, ...]) -> None:
        """Set the context's profile and input shape, without binding memory.

        Raises:
            ResnetOptError: The library rejects them.
        """
        self._before_change()
        self._active = None
        self._since = self._log.position
        context = self.context
        if len(self._profiles) > 1 and context.active_optimization_profile != profile.index:
            self._switch_profile(profile)
        if not context.set_input_shape(self._source.name, shape):
            raise self._failed(f"accept the shape {shape}")
        if context.infer_shapes():
            raise self._failed("infer its shapes")

    def _activate(self, binding: Binding) -> None:
        # A captured graph uses the addresses and shape of the time of capture. Launching it after they
        # changed is undefined behaviour, according to NVIDIA's guide.
        self.set_shape(binding.profile, binding.input_shape)
        for spec, buffer in (
            (self._source, binding.device_input),
            (self._target, binding.device_output),
        ):
            if not self.context.set_tensor_address(spec.name, buffer.handle):
                raise self._failed(f"bind the memory of {spec.name}")
        self._active = binding

    def _switch_profile(self, profile: ProfileRange) -> None:
        action = f"switch to profile {profile.index}"
        try:
            # The Python binding raises where the C++ function returns false.
            switched = self.context.set_optimization_profile_async(
                profile.index, self._stream.handle
            )
        except RuntimeError as error:
            raise self._failed(action, str(error)) from error
        if not switched:
            raise self._failed(action)
        self._stream.synchronize()

    def _failed(self, action: str, otherwise: str = "no reason given") -> ResnetOptError:
        reason = self._log.reason_since(self._since, otherwise)
        return ResnetOptError(f"the engine cannot {action}: {reason}")


def silence(trt: Any, context: Any) -> None:
    """Turn off a context's NVTX annotations.

    Engines are built with detailed layer information. A context of such an engine would also annotate
    every kernel by name, which costs host time in every call.
    """
    context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
