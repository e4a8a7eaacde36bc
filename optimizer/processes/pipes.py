"""This process's ends of a child's pipes, with a deadline for reading and writing."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable

__all__ = ["AnswerPipe", "RequestPipe", "WaitPolicy"]

_WATCH_S = 0.05
_CHUNK = 1 << 20


class WaitPolicy:
    """How long to wait for a child, and what to check in the meantime.

    Attributes:
        deadline: On the monotonic clock, in seconds; ``None`` for no deadline.
        watch: Called before waiting and twenty times per second while waiting.
    """

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.watch: Callable[[], None] | None = None

    def wait(self, poll: select.poll) -> None:
        """Wait until a descriptor is ready.

        Raises:
            TimeoutError: The deadline has passed.
        """
        while True:
            if self.watch is not None:
                self.watch()
            remaining = float("inf") if self.deadline is None else self.deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            step = remaining if self.watch is None else min(remaining, _WATCH_S)
            if poll.poll(None if step == float("inf") else step * 1000):
                return


class RequestPipe:
    """Writes to a child; raises `BrokenPipeError` if the child has ended."""

    def __init__(self, descriptor: int, wait_policy: WaitPolicy) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor: int | None = descriptor
        self._wait_policy = wait_policy
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: bytes, /) -> None:
        """Write all of ``data``."""
        if self._descriptor is None:
            raise BrokenPipeError
        remaining = memoryview(data)
        while remaining:
            self._wait_policy.wait(self._poll)
            with contextlib.suppress(BlockingIOError):  # not enough room in the pipe
                remaining = remaining[os.write(self._descriptor, remaining[:_CHUNK]) :]

    def flush(self) -> None:
        """Does nothing: writes are unbuffered."""

    def close(self) -> None:
        """Close the pipe; the child reads this as the end of its requests."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class AnswerPipe:
    """Reads from a child."""

    def __init__(self, descriptor: int, wait_policy: WaitPolicy) -> None:
        self._descriptor: int | None = descriptor
        self._wait_policy = wait_policy
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | select.POLLHUP)
        self._buffer = bytearray()

    def readline(self, limit: int = -1, /) -> bytes:
        """A line including its newline; less at the end of the stream or at ``limit``."""
        while (end := self._buffer.find(b"\n")) < 0:
            if 0 <= limit <= len(self._buffer) or not self._fill():
                return self._take(len(self._buffer))
        return self._take(end + 1)

    def read(self, size: int = -1, /) -> bytes:
        """``size`` bytes, or fewer at the end of the stream; everything without a size."""
        while (size < 0 or len(self._buffer) < size) and self._fill():
            pass
        return self._take(len(self._buffer) if size < 0 else size)

    def close(self) -> None:
        """Close the pipe; unread data is lost."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self) -> bool:
        if self._descriptor is None:
            return False
        self._wait_policy.wait(self._poll)
        chunk = os.read(self._descriptor, _CHUNK)
        self._buffer += chunk
        return bool(chunk)
