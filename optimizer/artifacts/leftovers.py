"""Names of temporary files, removing those of processes that no longer live, and marks of use.

A temporary name contains the process that made it: ``.model.resnet-opt-<host>-<pid>-<start>-…``.
The start time tells a process from a later one with the same id. Process ids of another machine or
container, in a folder that both share, mean nothing here; their files are left until they are old.

A process marks what it uses, and nobody may remove meanwhile, by an empty file with such a name. This
needs no locks, which network file systems may lack, and a mark ends with its process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["in_use", "leftovers", "names_in_use", "remove", "scratch_folder", "temporary_name"]

_PATTERN = re.compile(
    r"\.(?P<name>.*)\.resnet-opt-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}(\..*)?",
    re.DOTALL,
)
_FOREIGN_AGE_S = 7 * 24 * 3600
_LONGEST_STEM, _LONGEST_SUFFIX = 40, 20


def temporary_name(path: Path) -> str:
    """A new hidden name for a file or folder in the making.

    It keeps the suffix, because some libraries choose the format by it.
    """
    suffix = path.suffix if len(path.suffix) <= _LONGEST_SUFFIX else ""
    return f".{path.stem[:_LONGEST_STEM]}.{_process()}{suffix}"


def _process() -> str:
    pid = os.getpid()
    return f"resnet-opt-{_host()}-{pid}-{_start_of(pid) or 0}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def in_use(folder: Path, name: str) -> Iterator[None]:
    """Mark something in a folder as used by this process, so that `names_in_use` lists it.

    Args:
        folder: Made if it is missing. Where nothing can be written there is no mark.
        name: Of a file or of a group of files; at most 100 characters.
    """
    mark = folder / f".{name}.{_process()}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        yield
    finally:
        remove(mark)


def names_in_use(folder: Path) -> set[str]:
    """What living processes have marked in a folder."""
    try:
        found = [(path, _PATTERN.fullmatch(path.name)) for path in folder.iterdir()]
    except OSError:
        return set()
    return {match["name"] for path, match in found if match and not _is_abandoned(path, match)}


@contextlib.contextmanager
def scratch_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder that is removed at the end, after a crash by a later run.

    Args:
        purpose: A word for its name.
        parent: Where to make it; the system's folder for temporary files by default.
    """
    folder = (parent or Path(tempfile.gettempdir())) / temporary_name(Path(purpose))
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove(folder)


def leftovers(folders: Iterable[Path]) -> Iterator[Path]:
    """Temporary files and folders, directly in ``folders``, whose process no longer lives."""
    for folder in {Path(os.path.abspath(folder)) for folder in folders}:  # noqa: PTH100
        try:
            paths = list(folder.iterdir())
        except OSError:
            continue
        for path in paths:
            found = _PATTERN.fullmatch(path.name)
            if found is not None and _is_abandoned(path, found):
                yield path


def remove(path: Path) -> None:
    """Remove a file or folder as far as this process may; links are not followed."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path, found: re.Match[str]) -> bool:
    if found["host"] == _host():
        return not _runs(int(found["pid"]), int(found["start"]))
    try:
        return time.time() - path.lstat().st_mtime > _FOREIGN_AGE_S
    except OSError:
        return False


@functools.cache
def _host() -> str:
    """Identifies the machine and, in a container, its own process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:8]


def _runs(pid: int, start: int) -> bool:
    """Whether the process that was started at ``start`` still runs."""
    known = _start_of(pid)
    if known is not None:
        return known == start
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user, hidden in /proc
        return True
    return not Path("/proc/self/stat").exists()


def _start_of(pid: int) -> int | None:
    """When a process was started, in units that only compare; ``None`` if unknown or ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])
