"""What runs first in a child: it ties itself to its parent, then calls the function it is for."""

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
    """Serve until the function returns; the command line is that of `launching.command`."""
    name, settings = sys.argv[2], json.loads(sys.argv[3])
    asked, answering, watched = settings["descriptors"]
    for descriptor in (asked, answering, watched):
        os.set_inheritable(descriptor, False)
    _end_with_parent(watched)
    _end_before_others()
    if settings["cpus"] is not None:
        os.sched_setaffinity(0, settings["cpus"])
    sys.path += [entry for entry in settings["path"] if entry not in sys.path]
    sys.argv = [name]
    status = 0
    try:
        answers = os.fdopen(answering, "wb")
        resolve(name)(*settings["arguments"], os.fdopen(asked, "rb"), answers)
        answers.flush()
    except BrokenPipeError:
        pass  # whoever asked is gone
    except BaseException:  # noqa: BLE001 - whoever asked reads it as the last words
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # A library that crashes or hangs while it is unloaded has answered all the same.
    os._exit(status)


def resolve(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _end_with_parent(watched: int) -> None:
    """End this process's group when the parent is gone, in whatever way it ended.

    The parent holds the other end of a pipe that nothing is written to. Linux can be had to send
    SIGKILL to the whole group when it closes, also while native code is running here. (The signal
    of ``PR_SET_PDEATHSIG`` would come as soon as the *thread* ends that started this process, and
    to this process alone.) Elsewhere a thread waits for it.
    """
    try:
        _have_kernel_kill(watched)
    except (AttributeError, OSError):
        threading.Thread(target=_kill_at_end_of, args=[watched], daemon=True).start()


def _have_kernel_kill(watched: int) -> None:
    import fcntl

    fcntl.fcntl(watched, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(watched, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(watched, fcntl.F_SETFL, fcntl.fcntl(watched, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(watched, select.POLLHUP)
    if poll.poll(0):  # the parent was gone before
        os._exit(1)


def _kill_at_end_of(watched: int) -> None:
    os.read(watched, 1)
    os.killpg(0, signal.SIGKILL)


def _end_before_others() -> None:
    """Let Linux choose this process if memory runs out, and not the one that waits for it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
