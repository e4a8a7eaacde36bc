"""Start a worker, send it requests, detect crashes and hangs, and end it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from optimizer.errors import ResnetOptError
from optimizer.processes import Child, cpus_for
from optimizer.profiling.worker_messages import Message, read_message, write_message
from optimizer.results import EngineStatus

__all__ = ["Worker", "WorkerFailed"]

_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 5.0


class WorkerFailed(ResnetOptError):  # noqa: N818 - reads better without "Error"
    """A request to a worker failed; other engines are still measured.

    Args:
        message: What happened, in one line.
        status: ``failed``, or ``unavailable`` / ``built-not-run`` if the machine lacks something.
        usage: Whether the request was invalid, as opposed to an engine failure.
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
        threads: Compute threads; the process is pinned to as many cores.

    Raises:
        EnvironmentFault: No process can be started.
        WorkerFailed: The process ended or hung before it was ready.
    """

    def __init__(self, threads: int) -> None:
        self._child = Child(
            "optimizer.profiling.bench_worker:serve", threads=threads, cpus=cpus_for(threads)
        )
        try:
            header, _ = self._exchange(None, _START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self.start_s = (int(header["ready_ns"]) - self._child.started_ns) / 1e9
        """Seconds from process start to the first message, before the engine's library is loaded."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def ask(self, do: str, *, timeout_s: float, **fields: Any) -> Message:
        """Send a request and wait for the response.

        Raises:
            WorkerFailed: The engine failed, the process ended, or the request timed out; in the last
                two cases the process no longer runs.
        """
        return self._exchange({"do": do, **fields}, timeout_s)

    def _exchange(self, request: dict[str, Any] | None, timeout_s: float) -> Message:
        """Send the request, if any, and return the next message."""
        self._child.wait_policy.deadline = time.monotonic() + timeout_s
        try:
            if request is not None:
                with contextlib.suppress(BrokenPipeError):  # reading below reports why it ended
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
