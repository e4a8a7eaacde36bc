"""Kills a forked copy of this process, or fails one of its calls, at the n-th change of files.

A change is a call that opens a file for writing, renames, removes, makes a folder, or syncs, below
one folder. Python reports each to audit hooks before it is made; syncing is wrapped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Act = Literal["kill", "fail"]
_CHANGES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Injection:
    """Counts changes below a folder and acts at one of them."""

    def __init__(self, root: Path, at: int | None, act: Act) -> None:
        self.root, self.at, self.act = str(root), at, act
        self.count = 0
        self._armed = True
        sys.addaudithook(self._hook)
        fsync = os.fsync

        def counted(descriptor: Any) -> None:
            self._change()
            fsync(descriptor)

        os.fsync = counted

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event in _CHANGES:
            if self._is_below(arguments[0]):
                self._change()
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and self._is_below(path):
                self._change()

    def _is_below(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        return os.fsdecode(path).startswith(self.root)

    def _change(self) -> None:
        self.count += 1
        if self.count != self.at:
            return
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.root)


class Outcome:
    """How a forked copy ended: its exit status (negative: the signal) and the changes it made."""

    def __init__(self, status: int, changes: int | None, error: str) -> None:
        self.status, self.changes, self.error = status, changes, error


def in_a_copy(
    function: Callable[[], Any], root: Path, *, at: int | None = None, act: Act = "kill"
) -> Outcome:
    """Run ``function`` in a forked copy of this process.

    Returns:
        Status 0 if it returned, 1 if it raised, else what it returned as an exit code.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # libraries have threads
        pid = os.fork()
    if pid == 0:
        _run_and_exit(function, _Injection(root, at, act), write)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        text = stream.read().decode()
    _, waited = os.waitpid(pid, 0)
    count, _, error = text.partition("\n")
    return Outcome(os.waitstatus_to_exitcode(waited), int(count) if count else None, error)


def _run_and_exit(function: Callable[[], Any], injection: _Injection, write: int) -> None:
    status, error = 1, ""
    try:
        result = function()
        status = result if isinstance(result, int) else 0
    except BaseException:  # noqa: BLE001 - reported to the test
        error = traceback.format_exc()
    finally:
        with contextlib.suppress(BaseException):
            os.write(write, f"{injection.count}\n{error}".encode())
        os._exit(status)


def points(function: Callable[[], Any], root: Path, *, expect: int = 0) -> Iterator[int]:
    """The numbers of all changes that ``function`` makes below ``root``."""
    outcome = in_a_copy(function, root)
    assert outcome.status == expect, outcome.error
    assert outcome.changes, "it changes nothing"
    yield from range(1, outcome.changes + 1)
