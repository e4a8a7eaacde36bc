"""Memory for a batch of one size, on the host and on the GPU."""

from __future__ import annotations

import contextlib

import numpy as np

from optimizer.engines.cuda import DeviceBuffer, PinnedBuffer, Stream
from optimizer.engines.protocol import Array, TensorSpec
from optimizer.engines.tensorrt.profiles import ProfileRange
from optimizer.errors import UsageError

__all__ = ["Binding"]


class Binding:
    """Input and output buffers for ``images`` images, computed in one optimization profile.

    Raises:
        ResnetOptError: The memory cannot be had; none of it is kept then.
    """

    def __init__(
        self,
        stream: Stream,
        source: TensorSpec,
        target: TensorSpec,
        profile: ProfileRange,
        images: int,
    ) -> None:
        self.profile = profile
        self.images = images
        self._stream = stream
        self._in_shape = _sized(source, images)
        self._out_shape = _sized(target, images)
        self._in_dtype = np.dtype(source.dtype)
        self._out_dtype = np.dtype(target.dtype)
        self._in_bytes = int(np.prod(self._in_shape)) * self._in_dtype.itemsize
        self._out_bytes = int(np.prod(self._out_shape)) * self._out_dtype.itemsize
        api = stream.api
        with contextlib.ExitStack() as held:
            self.device_input = held.enter_context(DeviceBuffer(self._in_bytes, api=api))
            self.device_output = held.enter_context(DeviceBuffer(self._out_bytes, api=api))
            self._host_input = held.enter_context(PinnedBuffer(self._in_bytes, api=api))
            self._host_output = held.enter_context(PinnedBuffer(self._out_bytes, api=api))
            self._held = held.pop_all()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the input, batch included."""
        return self._in_shape

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
        """Free the memory; all of it, even if the device refuses a part."""
        self._held.close()


def _sized(spec: TensorSpec, images: int) -> tuple[int, ...]:
    rest = spec.shape[1:]
    if any(d is None for d in rest):
        raise UsageError(f"the engine's {spec.name} has a dynamic size beside its batch")
    return (images, *(int(d) for d in rest if d is not None))
