"""One build in a process of its own, within limits of memory and time.

A crash of a compiler (they do crash) ends its process and not the user's run; a library that
keeps threads or memory takes them along; and whatever ends a build, nothing of it stays: the process
works in a folder of its own, which goes with it, and so do processes that it started.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from optimizer.engines.protocol import Backend, BuildSettings, Built
from optimizer.errors import BuildError, ResnetOptError
from optimizer.progress import Progress

__all__ = ["Limits", "build_apart", "peak_memory"]

_MIB = 2**20
_POLL_S = 0.05
_GRACE_S = 5.0


@dataclass(frozen=True)
class Limits:
    """What a build may take.

    Attributes:
        seconds: Wall time of the process, from its start.
        memory_bytes: Resident host memory of the process and of those it starts, looked at twenty
            times a second; ``None`` for no limit. (A limit of the address space would not do:
            CUDA reserves far more addresses than it uses memory.)
    """

    seconds: float = 1800.0
    memory_bytes: int | None = None


def build_apart(
    backend: Backend,
    graph: Path,
    output: Path,
    settings: BuildSettings,
    limits: Limits,
    progress: Progress,
) -> tuple[Built, int | None]:
    """Build in a new process.

    Returns:
        What the backend found out, and the largest resident memory of the process in bytes
        (``None`` where the system does not tell).

    Raises:
        ResnetOptError: What the backend raised.
        BuildError: It crashed, raised anything else, or went beyond a limit; the message names it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix=f".{output.stem}.", dir=output.parent) as folder:
        inside = Path(folder) / output.name
        process = context.Process(
            target=_child,
            args=(backend, graph, inside, settings, theirs),
            name=f"build-{backend.name}",
        )
        process.start()
        theirs.close()
        try:
            built, peak = _listen(ours, process, backend.name, progress, limits)
            if inside.is_file():
                inside.replace(output)
            return built, peak
        finally:
            _end(process)
            ours.close()


def peak_memory() -> int | None:
    """The largest resident memory this process has had, bytes; ``None`` where it is not told.

    Linux's own figure for the process image: ``getrusage`` would also count what the parent held
    when it started this one.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


# --- the child -----------------------------------------------------------------------------------


class _Relay:
    """Progress in the child: every call goes to the parent as a message."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def start(self, label: str, total: int | None = None) -> None:
        self._pipe.send(("start", (label, total), {}))

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        self._pipe.send(("advance", (steps,), {"note": note}))

    def finish(self, note: str | None = None) -> None:
        self._pipe.send(("finish", (note,), {}))


def _child(
    backend: Backend, graph: Path, output: Path, settings: BuildSettings, pipe: Connection
) -> None:
    # The terminal sends Ctrl-C to the whole group; the parent decides and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        built = backend.build(graph, output, settings, _Relay(pipe))
        pipe.send(("built", (built, peak_memory()), {}))
    except ResnetOptError as error:
        pipe.send(("error", (error,), {}))
    except BaseException as error:  # noqa: BLE001 - the parent reports it; nothing is swallowed
        detail = traceback.format_exc()
        pipe.send(("crash", (f"{type(error).__name__}: {error}", detail), {}))


# --- the parent ----------------------------------------------------------------------------------


def _listen(
    pipe: Connection, process: Any, name: str, progress: Progress, limits: Limits
) -> tuple[Built, int | None]:
    deadline = time.monotonic() + limits.seconds
    relayed: Mapping[str, Any] = {
        "start": progress.start,
        "advance": progress.advance,
        "finish": progress.finish,
    }
    while True:
        _check(process, name, limits, deadline)
        if not pipe.poll(_POLL_S) and process.is_alive():
            continue
        try:
            kind, args, kwargs = pipe.recv()
        except EOFError:
            process.join(_GRACE_S)
            raise _crashed(name, process.exitcode) from None
        if kind == "built":
            built: Built = args[0]
            return built, args[1]
        if kind == "error":
            raise args[0]
        if kind == "crash":
            raise BuildError(f"{name}: {args[0]}") from RuntimeError(args[1])
        relayed[kind](*args, **kwargs)


def _check(process: Any, name: str, limits: Limits, deadline: float) -> None:
    """Raise when a limit is passed."""
    if time.monotonic() >= deadline:
        raise BuildError(
            f"{name} did not finish within the time limit of {limits.seconds:g} s",
            mend="a longer --build-timeout, or a lower --opt-level",
        )
    if limits.memory_bytes is None:
        return
    used = sum(_resident(one) for one in _family(process.pid))
    if used > limits.memory_bytes:
        raise BuildError(
            f"{name} took {used / _MIB:,.0f} MiB of memory, "
            f"the memory limit is {limits.memory_bytes / _MIB:,.0f} MiB",
            mend="a larger --memory-limit",
        )


def _crashed(name: str, status: int | None) -> BuildError:
    if status == -signal.SIGKILL:
        return BuildError(
            f"{name} was killed from outside while building, most likely for want of memory",
            mend="free some, and say with --memory-limit how much a build may take",
        )
    return BuildError(
        f"{name} crashed while building (exit status {status})",
        mend="try again; if it stays, build another precision to find the culprit",
    )


def _family(pid: int) -> list[Any]:
    """A process and all that it started; those that are gone are left out."""
    import psutil

    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _end(process: Any) -> None:
    """End what still runs of a build, and wait until it is gone."""
    started = _family(process.pid)[1:]
    if process.is_alive():
        process.terminate()
        process.join(_GRACE_S)
        if process.is_alive():
            process.kill()
    process.join()
    for one in started:
        _kill(one)


def _kill(process: Any) -> None:
    import psutil

    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
