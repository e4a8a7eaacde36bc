"""A child process: started, asked, found dead, ended with all it started."""

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
from optimizer.processes.launching import command, environment, search_path
from optimizer.processes.pipes import AnswerPipe, Patience, RequestPipe

__all__ = ["Child", "ChildFailed", "Reason", "ending"]

Reason = Literal["crashed", "killed", "ended", "closed", "garbled", "deadline", "memory", "raised"]
_log = logging.getLogger(__name__)
_DYING_S = 5.0
_STEP_S = 0.005
_TAIL_BYTES = 4096
_TAIL_LINES = 20
_WORDS = 200


class ChildFailed(ResnetOptError):  # noqa: N818 - reads as the sentence it is
    """A child gave no answer; the message is a predicate, its subject is up to the caller.

    Args:
        message: What became of it, in one line: ``crashed: its process was ended by SIGSEGV``.
        hint: What the reader can do about it.
        reason: ``crashed``; ``killed`` (by SIGKILL from outside, which is what Linux does when
            memory runs out); ``ended`` (by this process, before it was asked); ``closed`` (its
            pipe, and went on running); ``garbled`` (what it sent is no answer); ``deadline`` and
            ``memory`` (a limit was passed); ``raised`` (an exception that is none of ours).
        last_lines: The end of what it wrote to its standard output and error.
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


def ending(status: int | None) -> str:
    """How a process ended, in words: ``by SIGKILL`` or ``with exit code 1``.

    Args:
        status: The exit code, or minus the number of the signal; ``None`` if it is not known.
    """
    if status is None:
        return "with an exit code that is not known"
    if status >= 0:
        return f"with exit code {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


class Child:
    """A running child process that answers over its pipes.

    It leads a process group of its own: Ctrl-C reaches this process, which ends its children, and
    what a child starts is ended with it.

    Args:
        function: ``module:function`` inside this package. It is called with ``arguments`` and two
            binary streams, what it is asked and where it answers; when it returns, the child ends.
        arguments: JSON values.
        threads: Threads that its libraries compute with; ``None`` leaves that to them.
        cpus: CPUs to run on; ``None`` for all that this process may use.
        import_from: Further folders to import modules from, after all others.

    Attributes:
        pid: Process id, and id of the group.
        started_ns: When it was started, on the performance counter (nanoseconds).
        patience: The deadline of reading and writing.
        requests: What it is asked goes here.
        answers: What it answers comes from here.

    Raises:
        EnvironmentFault: No process can be started.
    """

    def __init__(
        self,
        function: str,
        arguments: Sequence[Any] = (),
        *,
        threads: int | None = None,
        cpus: Sequence[int] | None = None,
        import_from: Sequence[str] = (),
    ) -> None:
        self._function = function
        self._status: int | None = None
        self._gone = self._ended_here = False
        self._last_lines: list[str] = []
        self.patience = Patience()
        settings = {
            "arguments": list(arguments),
            "cpus": None if cpus is None else list(cpus),
            "path": [*search_path(), *import_from],
        }
        with contextlib.ExitStack() as undo:
            try:
                self._start(settings, threads, undo)
            except OSError as error:
                raise EnvironmentFault(f"cannot start a process: {error}") from error
            undo.pop_all()
        _running.add(self)

    def _start(
        self, settings: dict[str, Any], threads: int | None, undo: contextlib.ExitStack
    ) -> None:
        self._errors = undo.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by `end`
        with contextlib.ExitStack() as theirs:
            descriptors = []
            for child_reads in (True, False, True):
                ends = os.pipe()
                theirs.callback(os.close, ends[0 if child_reads else 1])
                undo.callback(os.close, ends[1 if child_reads else 0])
                descriptors.append(ends if child_reads else ends[::-1])
            (asked, requests), (answering, answers), (watched, self._life) = descriptors
            inherited = [asked, answering, watched]
            line = command(self._function, {**settings, "descriptors": inherited})
            self.started_ns = time.perf_counter_ns()
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=environment(threads),
                pass_fds=inherited,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.requests = RequestPipe(requests, self.patience)
        self.answers = AnswerPipe(answers, self.patience)

    def failure(self, unreadable: Exception | None = None) -> ChildFailed:
        """Why it gave no answer; the process is gone afterwards.

        Args:
            unreadable: What was wrong with what it sent; ``None`` if it sent nothing more.
        """
        if self._ended_here:
            return ChildFailed(f"was ended before, {ending(self._status)}", reason="ended")
        if not self._dies(_DYING_S if unreadable is None else 0.0):
            self.end()
            if unreadable is not None:
                return self._failed(f"sent something that is no answer: {unreadable}", "garbled")
            return self._failed("closed its output and went on running", "closed")
        self.end()
        said = f"its process was ended {ending(self._status)}"
        if self._last_lines:
            said += f" ({self._last_lines[-1][:_WORDS]})"
        if self._status == -signal.SIGKILL:
            return self._failed(
                f"was killed from outside, most likely because memory ran out: {said}", "killed"
            )
        return self._failed(f"crashed: {said}", "crashed")

    def _failed(self, message: str, reason: Reason) -> ChildFailed:
        return ChildFailed(message, reason=reason, last_lines=self._last_lines)

    @property
    def last_lines(self) -> Sequence[str]:
        """The last lines it wrote to its standard output and error; empty before it ended."""
        return self._last_lines

    def end(self, grace_s: float = 0.0) -> None:
        """End the process and what it started; calling it again does nothing.

        Args:
            grace_s: How long to wait for it to end by itself, now that nothing is asked any more.
        """
        if self._gone:
            return
        self.requests.close()
        try:
            self._ended_here = not self._dies(grace_s)
        finally:  # also when Ctrl-C cuts the waiting short
            self._gone = True
            # Its id stays taken until it is waited for, so no other group can be hit.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self._process.wait()
            self._close()
        if self._ended_here:
            self._status = code

    def _dies(self, seconds: float) -> bool:
        """Wait until the process has ended; where it can be helped, its id stays taken."""
        end = time.monotonic() + seconds
        while not self._is_dead():
            if time.monotonic() >= end:
                return False
            time.sleep(_STEP_S)
        return True

    def _is_dead(self) -> bool:
        if not hasattr(os, "waitid"):
            self._status = self._process.poll()
            return self._status is not None
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody in this process waits for whatever child ends
            return True
        if found is None:
            return False
        by_signal = found.si_code != os.CLD_EXITED
        self._status = -found.si_status if by_signal else found.si_status
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
        """In a copy of this process that was made by `os.fork`: the child is not the copy's."""
        self._gone = True
        self.requests.close()
        self.answers.close()
        os.close(self._life)
        self._errors.close()


_running: weakref.WeakSet[Child] = weakref.WeakSet()


def _disown_all() -> None:
    for child in list(_running):
        child._disown()  # noqa: SLF001
    _running.clear()


# A copy that kept the pipes open would keep children alive after their parent.
os.register_at_fork(after_in_child=_disown_all)
