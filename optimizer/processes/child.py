"""A child process that answers over pipes and is killed together with everything it started."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from typing import Any, Literal

from optimizer.errors import EnvironmentFault, ResnetOptError
from optimizer.processes.home import hint_for_temporary_files
from optimizer.processes.launching import command, environment, search_path
from optimizer.processes.pipes import AnswerPipe, RequestPipe, WaitPolicy

__all__ = ["Child", "ChildFailed", "Reason", "describe_exit"]

Reason = Literal["crashed", "killed", "ended", "closed", "garbled", "deadline", "memory", "raised"]
_log = logging.getLogger(__name__)
_EXIT_WAIT_S = 5.0
_POLL_S = 0.005
_TAIL_BYTES = 4096
_TAIL_LINES = 20
_MAX_CHARACTERS = 200


class ChildFailed(ResnetOptError):  # noqa: N818 - reads better
    """A child gave no answer. The message is a predicate; the caller adds the subject.

    Args:
        message: What happened, in one line: ``crashed: killed by SIGSEGV``.
        hint: What the user can do about it.
        reason: ``crashed``; ``killed`` (by SIGKILL from outside, which Linux sends when memory runs
            out); ``ended`` (by this process, before the request); ``closed`` (it closed its pipe
            but kept running); ``garbled`` (it sent an invalid answer); ``deadline`` and ``memory``
            (a limit was exceeded); ``raised`` (an exception other than `ResnetOptError`).
        last_lines: The end of its standard output and error.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        reason: Reason = "crashed",
        last_lines: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason: Reason = reason
        self.last_lines = tuple(last_lines)


def describe_exit(status: int | None) -> str:
    """How a process ended: ``killed by SIGKILL`` or ``exit code 1``.

    Args:
        status: The exit code, or the negative signal number; ``None`` if unknown.
    """
    if status is None:
        return "unknown exit code"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


class Child:
    """A running child process that answers requests over pipes.

    It leads its own process group: Ctrl-C reaches only this process, which kills its children, and
    processes started by a child are killed with it.

    Args:
        function: ``module:function`` inside this package. It is called with ``arguments`` and two
            binary streams, for requests and answers; the child ends when it returns.
        arguments: JSON values.
        threads: Compute threads of its libraries; ``None`` for their defaults.
        cpus: CPUs to run on; ``None`` for all that this process may use.
        import_from: Additional folders to import modules from, searched last.
        interpreter: The interpreter of another environment, which has its own packages: only this
            package is loaded from here. ``None`` for this interpreter and its search path.

    Attributes:
        pid: Process id, which is also the id of its process group.
        started_ns: Start time on the performance counter, in nanoseconds.
        wait_policy: The deadline for reading and writing.
        requests: Stream to write requests to.
        answers: Stream to read answers from.

    Raises:
        EnvironmentFault: The process cannot be started.
    """

    def __init__(
        self,
        function: str,
        arguments: Sequence[Any] = (),
        *,
        threads: int | None = None,
        cpus: Sequence[int] | None = None,
        import_from: Sequence[str] = (),
        interpreter: str | None = None,
    ) -> None:
        self._function, self._interpreter = function, interpreter
        self._status: int | None = None
        self._closed = self._killed_here = False
        self._last_lines: list[str] = []
        self.wait_policy = WaitPolicy()
        settings = {
            "arguments": list(arguments),
            "cpus": None if cpus is None else list(cpus),
            "path": [*(search_path() if interpreter is None else ()), *import_from],
        }
        with contextlib.ExitStack() as undo:
            try:
                self._start(settings, threads, undo)
            except OSError as error:
                raise EnvironmentFault(
                    f"cannot start a process: {error}", hint=hint_for_temporary_files()
                ) from error
            undo.pop_all()
        _running.add(self)

    def _start(
        self, settings: dict[str, Any], threads: int | None, undo: contextlib.ExitStack
    ) -> None:
        self._errors = undo.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by `end`
        with contextlib.ExitStack() as child_ends:
            descriptors = []
            for child_reads in (True, False, True):
                ends = os.pipe()
                child_ends.callback(os.close, ends[0 if child_reads else 1])
                undo.callback(os.close, ends[1 if child_reads else 0])
                descriptors.append(ends if child_reads else ends[::-1])
            (request_end, requests), (answer_end, answers), (parent_end, self._life) = descriptors
            inherited = [request_end, answer_end, parent_end]
            command_line = command(
                self._function, {**settings, "descriptors": inherited}, self._interpreter
            )
            self.started_ns = time.perf_counter_ns()
            self._process = subprocess.Popen(
                command_line,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=environment(threads, own_packages=self._interpreter is None),
                pass_fds=inherited,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.requests = RequestPipe(requests, self.wait_policy)
        self.answers = AnswerPipe(answers, self.wait_policy)

    def failure(self, unreadable: Exception | None = None) -> ChildFailed:
        """Find out why it gave no answer, and end the process.

        Args:
            unreadable: Why its answer could not be read; ``None`` if it sent none.
        """
        if self._killed_here:
            return ChildFailed(
                f"was already stopped ({describe_exit(self._status)})", reason="ended"
            )
        if not self._exits_within(_EXIT_WAIT_S if unreadable is None else 0.0):
            self.end()
            if unreadable is not None:
                return self._failed(f"sent an invalid answer: {unreadable}", "garbled")
            return self._failed("closed its output but kept running", "closed")
        self.end()
        last = f" ({self._last_lines[-1][:_MAX_CHARACTERS]})" if self._last_lines else ""
        if self._status == -signal.SIGKILL:
            return self._failed(
                f"was killed by SIGKILL, most likely because memory ran out{last}", "killed"
            )
        return self._failed(f"crashed: {describe_exit(self._status)}{last}", "crashed")

    def _failed(self, message: str, reason: Reason) -> ChildFailed:
        return ChildFailed(message, reason=reason, last_lines=self._last_lines)

    @property
    def last_lines(self) -> Sequence[str]:
        """The last lines of its standard output and error; empty until it has ended."""
        return self._last_lines

    def end(self, grace_s: float = 0.0) -> None:
        """End the process and everything it started; calling it again does nothing.

        Args:
            grace_s: Seconds to wait for it to end by itself after its requests are closed.
        """
        if self._closed:
            return
        self.requests.close()
        try:
            self._killed_here = not self._exits_within(grace_s)
        finally:  # also when Ctrl-C interrupts the wait
            self._closed = True
            # Its id is not reused before `wait`, so no other group can be hit.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self._process.wait()
            self._close()
        if self._killed_here:
            self._status = code

    def _exits_within(self, seconds: float) -> bool:
        """Wait for the process to end, if possible without freeing its id."""
        end = time.monotonic() + seconds
        while not self._has_exited():
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)
        return True

    def _has_exited(self) -> bool:
        if not hasattr(os, "waitid"):
            self._status = self._process.poll()
            return self._status is not None
        try:
            result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # other code in this process reaps every child
            return True
        if result is None:
            return False
        by_signal = result.si_code != os.CLD_EXITED
        self._status = -result.si_status if by_signal else result.si_status
        return True

    def _close(self) -> None:
        _running.discard(self)
        self.answers.close()
        os.close(self._life)
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        text = self._errors.read().decode(errors="replace")
        self._errors.close()
        self._last_lines = [row.strip() for row in text.split("\n") if row.strip()][-_TAIL_LINES:]
        if self._last_lines:
            _log.info("%s wrote:\n%s", self._function, "\n".join(self._last_lines))

    def _disown(self) -> None:
        """Release the child in a forked copy of this process, which does not own it."""
        self._closed = True
        self.requests.close()
        self.answers.close()
        os.close(self._life)
        self._errors.close()


_running: weakref.WeakSet[Child] = weakref.WeakSet()


def _disown_all() -> None:
    for child in list(_running):
        child._disown()  # noqa: SLF001
    _running.clear()


# A forked copy that kept the pipes open would keep children alive after their parent.
os.register_at_fork(after_in_child=_disown_all)
