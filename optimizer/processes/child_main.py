"""Entry point of a child: ties itself to its parent, then calls the requested function."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["main", "resolve"]


def main() -> None:
    """Run the function named on the command line (see `launching.command`)."""
    name, settings = sys.argv[2], json.loads(sys.argv[3])
    request_end, answer_end, parent_end = settings["descriptors"]
    for descriptor in (request_end, answer_end, parent_end):
        os.set_inheritable(descriptor, False)
    _end_with_parent(parent_end)
    _prefer_for_oom_kill()
    if settings["cpus"] is not None:
        os.sched_setaffinity(0, settings["cpus"])
    sys.path += [entry for entry in settings["path"] if entry not in sys.path]
    sys.argv = [name]
    status = 0
    try:
        answers = os.fdopen(answer_end, "wb")
        resolve(name)(*settings["arguments"], os.fdopen(request_end, "rb"), answers)
        answers.flush()
    except BrokenPipeError:
        pass  # the parent has ended
    except BaseException:  # noqa: BLE001 - the parent reports the last lines
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Skip unloading: a library that crashes or hangs there must not spoil the answer.
    os._exit(status)


def resolve(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _end_with_parent(parent_end: int) -> None:
    """Kill this process group when the parent ends, however it ends.

    The parent holds the other end of a pipe that is never written to. Linux can send SIGKILL to the
    whole group when the pipe closes, even while native code is running here. (``PR_SET_PDEATHSIG``
    would signal only this process, and as soon as the *thread* that started it ends.) On other
    systems a thread waits for the pipe to close.
    """
    try:
        _request_kernel_kill(parent_end)
    except (AttributeError, OSError):
        threading.Thread(target=_kill_on_close, args=[parent_end], daemon=True).start()


def _request_kernel_kill(parent_end: int) -> None:
    import fcntl

    fcntl.fcntl(parent_end, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(parent_end, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(parent_end, fcntl.F_SETFL, fcntl.fcntl(parent_end, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(parent_end, select.POLLHUP)
    if poll.poll(0):  # the parent has already ended
        os._exit(1)


def _kill_on_close(parent_end: int) -> None:
    os.read(parent_end, 1)
    os.killpg(0, signal.SIGKILL)


def _prefer_for_oom_kill() -> None:
    """Make Linux kill this process, not its parent, if memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
