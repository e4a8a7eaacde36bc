"""One build in a process of its own, within limits of memory and time.

A crash of a compiler (they do crash) ends its process and not the user's run; a library that
keeps threads or memory takes them along; and whatever ends a build, nothing of it stays: the process
works in a folder of its own, which goes with it, and so do processes that it started.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from optimizer.engines.protocol import Backend, BuildSettings, Built
from optimizer.errors import BuildError, UsageError
from optimizer.processes import ChildFailed, Limits, call, memory_bytes
from optimizer.progress import Progress

__all__ = ["build_apart", "build_here"]

_HINTS = {
    "deadline": "a longer --build-timeout, or a lower --opt-level",
    "memory": "a larger --memory-limit",
    "killed": "free some, and say with --memory-limit how much a build may take",
    "crashed": "try again; if it stays, build another precision to find the culprit",
}


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
        UsageError: The backend belongs to the user's script, which a child never imports.
    """
    folders = _folders_of(backend)
    with tempfile.TemporaryDirectory(prefix=f".{output.stem}.", dir=output.parent) as folder:
        inside = Path(folder) / output.name
        try:
            built, peak = call(
                "optimizer.engines.build_process:build_here",
                [backend, graph, inside, settings],
                limits=limits,
                import_from=folders,
                progress=progress,
            )
        except ChildFailed as failure:
            raise BuildError(
                f"{backend.name}'s build {failure.message}", hint=_HINTS.get(failure.reason)
            ) from failure
        if inside.is_file():
            inside.replace(output)
        return built, peak


def build_here(
    backend: Backend, graph: Path, output: Path, settings: BuildSettings, *, progress: Progress
) -> tuple[Built, int | None]:
    """Build in this process; what `build_apart` has called in a child."""
    built = backend.build(graph, output, settings, progress)
    peak, now = memory_bytes()
    return built, None if now is None else peak


def _folders_of(backend: Backend) -> list[str]:
    """Where the module of a third party's backend is imported from; it may be the current folder."""
    top = type(backend).__module__.partition(".")[0]
    if top == "optimizer":
        return []
    if top == "__main__":
        raise UsageError(
            f"the backend {backend.name} is defined in the script that is run, "
            "and builds run in processes that do not import it",
            hint="put the backend into a module of its own",
        )
    module = sys.modules[top]
    place = next(iter(getattr(module, "__path__", ())), None) or module.__file__
    return [] if place is None else [os.path.dirname(os.path.abspath(place))]  # noqa: PTH100, PTH120
