"""Host and GPU memory for one batch size."""

from __future__ import annotations

import contextlib

import numpy as np

from optimizer.engines.cuda import DeviceBuffer, PinnedBuffer, Stream
from optimizer.engines.protocol import Array, TensorSpec
from optimizer.engines.tensorrt.profiles import ProfileRange
from optimizer.errors import UsageError

__all__ = ["Binding"]


class Binding:
    """Input and output buffers for ``images`` images in one optimization profile.

    Raises:
        ResnetOptError: The memory cannot be allocated; whatever was allocated is freed.
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
        with contextlib.ExitStack() as buffers:
            self.device_input = buffers.enter_context(DeviceBuffer(self._in_bytes, api=api))
            self.device_output = buffers.enter_context(DeviceBuffer(self._out_bytes, api=api))
            self._host_input = buffers.enter_context(PinnedBuffer(self._in_bytes, api=api))
            self._host_output = buffers.enter_context(PinnedBuffer(self._out_bytes, api=api))
            self._buffers = buffers.pop_all()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the input, including the batch."""
        return self._in_shape

    def fill(self, batch: Array) -> None:
        """Write a batch into the host buffer, padded with copies of its last image."""
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
        """The first ``count`` rows of the host buffer, as a new float32 array."""
        view = self._host_output.view(self._out_shape, self._out_dtype)
        return np.array(view[:count], dtype=np.float32)

    def close(self) -> None:
        """Free all of the memory, even if freeing one buffer fails."""
        self._buffers.close()


def _sized(spec: TensorSpec, images: int) -> tuple[int, ...]:
    rest = spec.shape[1:]
    if any(d is None for d in rest):
        raise UsageError(f"the engine's {spec.name} has a dynamic dimension other than its batch")
    return (images, *(int(d) for d in rest if d is not None))
