"""Runs a build in a child process with limits on memory and time.

A crashing compiler ends only the child, and its threads and memory are released with it. The child
works in a temporary folder, which is removed however the build ends, as are processes it started.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from optimizer.artifacts import scratch_folder
from optimizer.engines.protocol import Backend, BuildSettings, Built
from optimizer.errors import BuildError, UsageError
from optimizer.processes import ChildFailed, Limits, call, memory_bytes
from optimizer.progress import Progress

__all__ = ["build_here", "build_in_child"]

_HINTS = {
    "deadline": "set a longer --build-timeout, or a lower --opt-level",
    "memory": "set a larger --memory-limit",
    "killed": "free some memory, and limit the build with --memory-limit",
    "crashed": "try again; if it crashes again, try another precision to narrow it down",
}


def build_in_child(
    backend: Backend,
    graph: Path,
    output: Path,
    settings: BuildSettings,
    limits: Limits,
    progress: Progress,
) -> tuple[Built, int | None]:
    """Build in a new process.

    Returns:
        The result of the backend, and the peak resident memory of the process in bytes (``None``
        if the system does not report it).

    Raises:
        ResnetOptError: The error that the backend raised.
        BuildError: The build crashed, raised another exception, or exceeded a limit.
        UsageError: The backend is defined in the user's script, which a child never imports.
    """
    folders = _import_folders(backend)
    with scratch_folder("build", output.parent) as folder:
        inside = folder / output.name
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
    """Build in this process; `build_in_child` calls this in the child."""
    built = backend.build(graph, output, settings, progress)
    peak, now = memory_bytes()
    return built, None if now is None else peak


def _import_folders(backend: Backend) -> list[str]:
    """Where a third-party backend is imported from; it may be the current folder."""
    top = type(backend).__module__.partition(".")[0]
    if top == "optimizer":
        return []
    if top == "__main__":
        raise UsageError(
            f"the backend {backend.name} is defined in the main script, "
            "which build processes do not import",
            hint="move the backend into its own module",
        )
    module = sys.modules[top]
    location = next(iter(getattr(module, "__path__", ())), None) or module.__file__
    return [] if location is None else [os.path.dirname(os.path.abspath(location))]  # noqa: PTH100, PTH120
