"""The harness's side of a worker: start it, ask it, notice that it crashed or hangs, end it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optimizer
from optimizer.errors import ResnetOptError
from optimizer.profiling.wire import Message, read_message, write_message
from optimizer.results import EngineStatus

__all__ = ["Worker", "WorkerFailed", "cpus_for", "thread_environment"]

_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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


def cpus_for(threads: int) -> list[int] | None:
    """CPUs to pin a worker to: one hardware thread of each of as many cores.

    Returns:
        ``None`` where pinning would change nothing or the system does not tell: fewer cores than
        threads, or no ``/sys``.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    cores: dict[str, int] = {}
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.setdefault(siblings.read_text(encoding="ascii").strip(), cpu)
        except OSError:
            return None
    chosen = list(cores.values())[:threads]
    return chosen if len(chosen) == threads and chosen != allowed else None


class Worker:
    """A running worker process.

    Args:
        threads: Threads its engine computes with; the process is pinned to as many cores.
    """

    def __init__(self, threads: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        command = [sys.executable, "-m", "optimizer.profiling.worker"]
        if cpus := cpus_for(threads):
            command += ["--cpus", ",".join(map(str, cpus))]
        started = time.perf_counter_ns()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=thread_environment(threads),
            bufsize=0,
            start_new_session=True,  # Ctrl-C reaches the harness, which ends its workers
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._answers = _Pipe(self._process.stdout.fileno())
        try:
            header, _ = self._receive(_START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self.start_s = (int(header["ready_ns"]) - started) / 1e9
        """From the start of the process to its first message, without the engine's library."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, do: str, *, timeout_s: float, **fields: Any) -> Message:
        """Send a request and wait for its answer.

        Raises:
            WorkerFailed: The engine failed, the process ended, or no answer came in time; in the
                last two cases the process is gone afterwards.
        """
        with contextlib.suppress(BrokenPipeError):  # the process is gone: what is read says why
            write_message(self._requests, {"do": do, **fields})
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Message:
        self._answers.deadline = time.monotonic() + timeout_s
        try:
            message = read_message(self._answers)
        except TimeoutError:
            self._kill()
            raise WorkerFailed(f"hangs: no answer within {timeout_s:.3g} s") from None
        except ValueError as error:
            message = None
            if self._process.poll() is None:
                self._kill()
                raise WorkerFailed(f"sent something that is no answer: {error}") from error
        if message is None:
            raise WorkerFailed(self._obituary())
        header, arrays = message
        if not header["ok"]:
            status: EngineStatus = "failed"
            if header["environment"]:
                status = "built-not-run" if header["kind"] == "MissingDevice" else "unavailable"
            raise WorkerFailed(str(header["message"]), status=status, usage=header["usage"])
        return header, arrays

    def _obituary(self) -> str:
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return "closed its output and went on running"
        try:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        except ValueError:
            how = f"by signal {-code}"
        last = self._last_error()
        return f"crashed: its process was ended {how}" + (f" ({last})" if last else "")

    def _last_error(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")

    def _kill(self) -> None:
        # The process is the leader of its own group; what it may have started goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process; calling it again does nothing."""
        if self._errors.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of a process that imports this package and computes with so many threads."""
    root = str(Path(optimizer.__file__).resolve().parent.parent)
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    counts = {name: str(threads) for name in _THREAD_VARIABLES}
    return {**os.environ, **counts, "PYTHONPATH": path}


class _Pipe:
    """Reads from a descriptor up to a deadline (`optimizer.profiling.wire.Reader`)."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | select.POLLHUP)
        self._buffer = bytearray()
        self.deadline = 0.0

    def readline(self, limit: int = -1, /) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if 0 <= limit <= len(self._buffer) or not self._fill():
                return self._take(len(self._buffer))
        return self._take(end + 1)

    def read(self, size: int = -1, /) -> bytes:
        while (size < 0 or len(self._buffer) < size) and self._fill():
            pass
        return self._take(len(self._buffer) if size < 0 else size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self) -> bool:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0 or not self._poll.poll(remaining * 1000):
            raise TimeoutError
        chunk = os.read(self._descriptor, 1 << 20)
        self._buffer += chunk
        return bool(chunk)
