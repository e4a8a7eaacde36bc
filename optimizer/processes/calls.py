"""Calls one function in a child, with limits, and returns its result or raises its exception.

Arguments and results are pickled; both ends of the pipes belong to this package.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from optimizer.errors import ResnetOptError, file_system_fault
from optimizer.processes.child import Child, ChildFailed
from optimizer.processes.child_main import resolve
from optimizer.processes.frames import receive, send
from optimizer.progress import Progress

__all__ = ["Limits", "answer_call", "call", "give_up"]

_MIB = 2**20
_UNLOAD_WAIT_S = 5.0
_MAX_CHARACTERS = 500


@dataclass(frozen=True)
class Limits:
    """Limits of a call.

    Attributes:
        seconds: Wall time of the process, from its start.
        memory_bytes: Resident host memory of the process and its descendants, checked twenty times
            per second; ``None`` for no limit. (An address-space limit would not work: CUDA reserves
            far more address space than it uses memory.)
    """

    seconds: float = 1800.0
    memory_bytes: int | None = None


def call(
    function: str,
    arguments: Sequence[Any] = (),
    *,
    limits: Limits | None = None,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    import_from: Sequence[str] = (),
    interpreter: str | None = None,
    progress: Progress | None = None,
) -> Any:
    """Call a function in a new process.

    Args:
        function: ``module:function`` inside this package.
        arguments: Arguments of the function; pickled.
        limits: Limits on time and memory.
        threads: Compute threads of its libraries; ``None`` for their defaults.
        cpus: CPUs to run on; ``None`` for all that this process may use.
        import_from: Additional folders to import modules from.
        interpreter: The interpreter of another environment; see `Child`.
        progress: If given, the function gets a keyword ``progress`` that forwards updates to it.

    Returns:
        The result of the function.

    Raises:
        ResnetOptError: The function raised it.
        ChildFailed: The child crashed, was killed, exceeded a limit, or raised another exception.
        EnvironmentFault: The process cannot be started.
    """
    limits = limits or Limits()
    child = Child(
        "optimizer.processes.calls:answer_call",
        [function],
        threads=threads,
        cpus=cpus,
        import_from=import_from,
        interpreter=interpreter,
    )
    try:
        child.wait_policy.deadline = time.monotonic() + limits.seconds
        if limits.memory_bytes is not None:
            child.wait_policy.watch = _MemoryWatch(child.pid, limits.memory_bytes)
        result = _exchange(child, (tuple(arguments), progress is not None), progress)
        child.end(_UNLOAD_WAIT_S)
    except TimeoutError:
        raise ChildFailed(
            f"did not finish within the time limit of {limits.seconds:g} s", reason="deadline"
        ) from None
    finally:
        child.end()
    return result


def give_up(error: Exception) -> NoReturn:
    """Make `call` in the parent raise ``error``, and end this child at once.

    For callbacks from native code, which exceptions must not cross. Any thread may call it.
    """
    assert _reply is not None, "not in a child started by `call`"
    _reply(pickle.dumps(_describe(error)))
    os._exit(1)


# --- the parent ----------------------------------------------------------------------------------


def _exchange(child: Child, request: Any, progress: Progress | None) -> Any:
    frame = pickle.dumps(request)
    try:
        send(child.requests, frame)
    except BrokenPipeError:
        raise child.failure() from None
    while True:
        try:
            message = receive(child.answers)
        except (ValueError, pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
            raise child.failure(error) from error
        if message is None:
            raise child.failure()
        kind, content = message
        if kind == "result":
            return content
        if kind == "error":
            raise content
        if kind == "raised":
            text, trace = content
            raise ChildFailed(text, reason="raised") from RuntimeError(trace)
        assert progress is not None
        getattr(progress, kind)(*content[0], **content[1])


class _MemoryWatch:
    """Raises when a process and its descendants exceed a memory limit."""

    def __init__(self, pid: int, limit: int) -> None:
        self._pid, self._limit = pid, limit

    def __call__(self) -> None:
        used = resident_bytes(self._pid)
        if used > self._limit:
            raise ChildFailed(
                f"used {used / _MIB:,.0f} MiB of memory; "
                f"the memory limit is {self._limit / _MIB:,.0f} MiB",
                reason="memory",
            )


def resident_bytes(pid: int) -> int:
    """Resident memory in bytes of a process and its descendants; zero if it has ended."""
    import psutil

    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in processes:
        try:
            total += int(process.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return total


# --- the child -----------------------------------------------------------------------------------

_Message = tuple[str, Any]
_reply: Callable[[bytes], None] | None = None


def answer_call(function: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Call ``function`` with the arguments in ``requests``, and send its result or exception."""
    global _reply  # noqa: PLW0603 - a child answers one call, and `give_up` must reach it
    lock = threading.Lock()

    def reply(frame: bytes) -> None:
        with lock:
            send(answers, frame)

    _reply = reply
    try:
        arguments, wants_progress = receive(requests)
        options = {"progress": _Relay(reply)} if wants_progress else {}
        frame = pickle.dumps(("result", resolve(function)(*arguments, **options)))
    except BaseException as error:  # noqa: BLE001 - sent to the parent
        frame = pickle.dumps(_describe(error))
    reply(frame)


class _Relay:
    """Progress in the child: sends every step to the parent."""

    def __init__(self, reply: Callable[[bytes], None]) -> None:
        self._reply = reply

    def start(self, label: str, total: int | None = None) -> None:
        self._send_step("start", label, total)

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        self._send_step("advance", steps, note=note)

    def finish(self, note: str | None = None) -> None:
        self._send_step("finish", note)

    def _send_step(self, step: str, *arguments: Any, **options: Any) -> None:
        self._reply(pickle.dumps((step, (arguments, options))))


def _describe(error: BaseException) -> _Message:
    """An exception as a message: a `ResnetOptError` as itself, others as text."""
    if isinstance(error, ResnetOptError):
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - just dumped
        except Exception:  # noqa: BLE001 - constructors of subclasses may raise anything
            return "error", ResnetOptError(error.message, hint=error.hint)
        return "error", error
    if (fault := file_system_fault(error)) is not None:
        return "error", fault
    text = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_CHARACTERS]
    return "raised", (f"raised {text}", "".join(traceback.format_exception(error)))
