"""Atomic file writes: of one file, and of a file together with its sidecar.

Contents are synced before a file gets its name, and the folder afterwards. So after a crash or a
power loss a name refers to complete contents, old or new. Two names cannot change in one step: the
sidecar is complete under a temporary name before the file is renamed, and whoever finds it later
(`optimizer.artifacts.recovering`) renames it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from optimizer.artifacts.leftovers import temporary_name
from optimizer.errors import ArtifactError

__all__ = [
    "ChangedMeanwhile",
    "folder_locked",
    "write_atomically",
    "write_pair_atomically",
    "write_text_atomically",
]


class ChangedMeanwhile(ArtifactError):  # noqa: N818 - reads better
    """Another process wrote the file while this one was making it."""


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it into place on success.

    The temporary name keeps the suffix, because some libraries choose the format by it. On any
    exception, including an interrupt, the temporary file is removed and ``path`` is untouched.

    Raises:
        ArtifactError: Nothing was written to the temporary path.
    """
    temporary, mode = _create_beside(path)
    try:
        yield temporary
        _finish(temporary, path, mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def write_pair_atomically(path: Path, sidecar: Path) -> Iterator[tuple[Path, Path]]:
    """Yield temporary paths of a file and of its sidecar; rename both into place on success.

    If this is interrupted between the two, the sidecar stays under its temporary name.

    Raises:
        ArtifactError: One of them was not written.
        ChangedMeanwhile: Another process wrote ``path`` in the meantime; nothing is replaced.
    """
    before = _identity(path)
    temporary, mode = _create_beside(path)
    beside: Path | None = None
    try:
        beside, _ = _create_beside(sidecar)
        yield temporary, beside
        _finish(temporary, path, mode)
        _finish(beside, sidecar, mode)
        with folder_locked(path.parent):
            if _identity(path) != before:
                raise ChangedMeanwhile(
                    f"another process wrote {path} in the meantime",
                    hint="give each of them its own -o",
                )
            promised, beside = beside, None
            try:
                temporary.replace(path)
            except OSError:
                beside = promised
                raise
            _sync_folder(path.parent)
            promised.replace(sidecar)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        if beside is not None:
            beside.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; see `write_atomically`."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _create_beside(path: Path) -> tuple[Path, int]:
    """A new file with a temporary name in the folder of ``path``, and its permissions."""
    _make_folder(path.parent)
    temporary = path.with_name(temporary_name(path))
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        return temporary, os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably as the file that it is made for."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in made:
        _sync_folder(path.parent)


def _finish(temporary: Path, path: Path, mode: int) -> None:
    """Make the contents durable, with the permissions of a new file whoever created this one."""
    if not temporary.is_file():
        raise ArtifactError(f"nothing was written for {path}")
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.chmod(mode)


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; ``None`` if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Keep other processes from renaming into the folder, where the file system has locks."""
    import fcntl

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable.

    A failure is not raised: the files have their names already, and nothing could be undone.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
