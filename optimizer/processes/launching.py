"""Starts interpreters that run only our code.

A child's search path is that of a fresh interpreter (the standard library, installed packages and
``PYTHONPATH``), followed by the rest of this process's ``sys.path``. The current folder is always
excluded, because a file there may have the name of any library. This package is loaded from the
location this process uses (a folder or a zip file), without a search.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optimizer
from optimizer.errors import EnvironmentFault
from optimizer.processes.home import home_variable
from optimizer.processes.resources import THREAD_VARIABLES, limit_library_threads

__all__ = ["command", "cpus_for", "environment", "search_path"]

# Made absolute now: the current folder may have changed when a child is started.
_ROOT = os.path.dirname(os.path.abspath(optimizer.__path__[0]))  # noqa: PTH100, PTH120
_START = """\
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
spec = PathFinder.find_spec("optimizer", [sys.argv[1]])
package = sys.modules["optimizer"] = module_from_spec(spec)
spec.loader.exec_module(package)
from optimizer.processes.child_main import main
main()
"""


def command(
    function: str, settings: Mapping[str, Any], interpreter: str | None = None
) -> list[str]:
    """The command line of a child.

    Args:
        function: The function to run, ``module:function``.
        settings: Settings for `optimizer.processes.child_main`; JSON values.
        interpreter: Another environment's interpreter; ``None`` for this one.

    Raises:
        EnvironmentFault: ``sys.executable`` is empty.
    """
    if interpreter is None and not sys.executable:
        raise EnvironmentFault(
            "cannot start a process: sys.executable is empty",
            hint="start Python by its full path, or set sys.executable",
        )
    started = interpreter or sys.executable
    return [started, *_isolation(), "-c", _START, _ROOT, function, json.dumps(settings)]


def _isolation() -> list[str]:
    """Flags for the isolation of this interpreter; the current folder is never on the path."""
    if sys.flags.isolated:
        return ["-I"]
    return [
        "-P",
        *(["-E"] if sys.flags.ignore_environment else []),
        *(["-s"] if sys.flags.no_user_site else []),
    ]


def environment(threads: int | None, *, own_packages: bool = True) -> dict[str, str]:
    """The environment of a child.

    Args:
        threads: Compute threads of libraries; ``None`` leaves the choice to them, within the
            container's CPU quota.
        own_packages: Whether the child imports the packages of this process; if not, it gets no
            ``PYTHONPATH``.
    """
    if threads is None:
        counts = limit_library_threads(os.environ)
    else:
        counts = dict.fromkeys(THREAD_VARIABLES, str(threads))
    # Also for Python processes that a library starts in the child.
    child = {**os.environ, **counts, **home_variable(os.environ), "PYTHONSAFEPATH": "1"}
    # An empty entry also means the current folder. Absolute paths stay.
    entries = child.pop("PYTHONPATH", "").split(os.pathsep) if own_packages else []
    if kept := [entry for entry in entries if os.path.normpath(entry) != os.curdir]:
        child["PYTHONPATH"] = os.pathsep.join(kept)
    return child


def search_path() -> list[str]:
    """This process's ``sys.path`` without the current folder and relative entries."""
    try:
        current = Path.cwd().resolve()
    except OSError:  # it was deleted
        current = None
    # The import system ignores entries that are not strings.
    entries = [entry for entry in sys.path if isinstance(entry, str)]
    absolute = [entry for entry in entries if Path(entry).is_absolute()]
    return [entry for entry in absolute if Path(entry).resolve() != current]


def cpus_for(threads: int) -> list[int] | None:
    """CPUs to pin a process to: one hardware thread on each of ``threads`` cores.

    Returns:
        ``None`` if pinning would change nothing, if there are fewer cores than threads, or if the
        system does not report its topology (no ``/sys``).
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
