"""How an interpreter is started that runs our code and nobody else's.

A child sees what a fresh interpreter sees: the standard library, installed packages and
``PYTHONPATH``, then whatever else this process has on its ``sys.path``. The current folder is left
out of all of it, because a file there may carry the name of any library. This package is loaded from
where this process has it (a folder or a zip file), by its location and not by a search.
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

__all__ = ["command", "cpus_for", "environment", "search_path"]

# Absolute, as it is now: the current folder may be another one by the time a child is started.
_ROOT = os.path.dirname(os.path.abspath(optimizer.__path__[0]))  # noqa: PTH100, PTH120
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
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


def command(function: str, settings: Mapping[str, Any]) -> list[str]:
    """The command line of a child.

    Args:
        function: What it runs, ``module:function``.
        settings: What `optimizer.processes.child_main` reads; JSON values.

    Raises:
        EnvironmentFault: Python does not know its own program.
    """
    if not sys.executable:
        raise EnvironmentFault(
            "cannot start a process: Python does not know its own program (sys.executable is empty)",
            hint="start Python by its full path, or set sys.executable",
        )
    return [sys.executable, *_isolation(), "-c", _START, _ROOT, function, json.dumps(settings)]


def _isolation() -> list[str]:
    """As isolated as this interpreter, and never with the current folder on the path."""
    if sys.flags.isolated:
        return ["-I"]
    return [
        "-P",
        *(["-E"] if sys.flags.ignore_environment else []),
        *(["-s"] if sys.flags.no_user_site else []),
    ]


def environment(threads: int | None) -> dict[str, str]:
    """The environment of a child.

    Args:
        threads: Threads that libraries compute with; ``None`` leaves the variables as they are.
    """
    counts = {} if threads is None else dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # For every Python that a library may start in there.
    child = {**os.environ, **counts, "PYTHONSAFEPATH": "1"}
    # An empty entry is the current folder too. (A full path stays, whatever folder it is.)
    entries = child.pop("PYTHONPATH", "").split(os.pathsep)
    if kept := [entry for entry in entries if os.path.normpath(entry) != os.curdir]:
        child["PYTHONPATH"] = os.pathsep.join(kept)
    return child


def search_path() -> list[str]:
    """Where this process finds modules, without the current folder and what is relative to it."""
    try:
        here = Path.cwd().resolve()
    except OSError:  # it was deleted
        here = None
    # What else it may hold is no string, and no place to the import system either.
    entries = [entry for entry in sys.path if isinstance(entry, str)]
    absolute = [entry for entry in entries if Path(entry).is_absolute()]
    return [entry for entry in absolute if Path(entry).resolve() != here]


def cpus_for(threads: int) -> list[int] | None:
    """CPUs to pin a process to: one hardware thread of each of as many cores.

    Returns:
        ``None`` where pinning would change nothing or the system does not tell: fewer cores than
        threads, or no ``/sys``.
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
