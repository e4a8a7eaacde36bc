"""The harness's side of a worker: start it, ask it, notice that it crashed or hangs, end it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from optimizer.errors import ResnetOptError
from optimizer.processes import Child, cpus_for
from optimizer.profiling.wire import Message, read_message, write_message
from optimizer.results import EngineStatus

__all__ = ["Worker", "WorkerFailed"]

_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 5.0


class WorkerFailed(ResnetOptError):  # noqa: N818 - reads as the sentence it is
    """An engine did not do what it was asked; the others are measured all the same.

    Args:
        message: What happened, in one line.
        status: ``failed``, or ``unavailable`` / ``built-not-run`` if the machine lacks something.
        usage: Whether the request was wrong and not the engine.
    """

    def __init__(
        self, message: str, *, status: EngineStatus = "failed", usage: bool = False
    ) -> None:
        super().__init__(message)
        self.status: EngineStatus = status
        self.usage = usage


class Worker:
    """A running worker process.

    Args:
        threads: Threads its engine computes with; the process is pinned to as many cores.

    Raises:
        EnvironmentFault: No process can be started.
        WorkerFailed: It ended, or hung, before it was ready.
    """

    def __init__(self, threads: int) -> None:
        self._child = Child(
            "optimizer.profiling.bench_worker:serve", threads=threads, cpus=cpus_for(threads)
        )
        try:
            header, _ = self._answer(None, _START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self.start_s = (int(header["ready_ns"]) - self._child.started_ns) / 1e9
        """From the start of the process to its first message, without the engine's library."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def ask(self, do: str, *, timeout_s: float, **fields: Any) -> Message:
        """Send a request and wait for its answer.

        Raises:
            WorkerFailed: The engine failed, the process ended, or no answer came in time; in the
                last two cases the process is gone afterwards.
        """
        return self._answer({"do": do, **fields}, timeout_s)

    def _answer(self, request: dict[str, Any] | None, timeout_s: float) -> Message:
        """The answer to a request, or without one the first message."""
        self._child.wait_policy.deadline = time.monotonic() + timeout_s
        try:
            if request is not None:
                with contextlib.suppress(BrokenPipeError):  # it is gone: what is read says why
                    write_message(self._child.requests, request)
            message = read_message(self._child.answers)
        except TimeoutError:
            self._child.end()
            raise WorkerFailed(f"hangs: no answer within {timeout_s:.3g} s") from None
        except ValueError as error:
            failure = self._child.failure(error)
            raise WorkerFailed(failure.message) from failure
        if message is None:
            failure = self._child.failure()
            raise WorkerFailed(failure.message) from failure
        header, arrays = message
        if not header["ok"]:
            status: EngineStatus = "failed"
            if header["environment"]:
                status = "built-not-run" if header["kind"] == "MissingDevice" else "unavailable"
            raise WorkerFailed(str(header["message"]), status=status, usage=header["usage"])
        return header, arrays

    def close(self) -> None:
        """End the process; calling it again does nothing."""
        self._child.end(_END_TIMEOUT_S)
