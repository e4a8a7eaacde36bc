"""What a disk may hold after a power loss, from the calls that a killed process made.

The model is the weakest that a file system may keep. Contents that were not synced are empty or gone.
A rename counts only once its folder was synced; until then each of the latest ones may be lost, and
then the names are as before. What was synced stays, so a disk that lies about it is not covered.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.torture.injecting import in_a_copy

Unsynced = Literal["kept", "empty", "gone"]


@dataclass
class Journal:
    """What a process did below a folder, in a file that a kill does not lose.

    Attributes:
        root: The folder.
        store: Where the journal and replaced files are kept; outside of ``root``.
    """

    root: Path
    store: Path
    renames: list[tuple[Path, Path, Path | None]] = field(default_factory=list)
    synced: dict[int, tuple[int, int]] = field(default_factory=dict)

    def start(self, die_at: int) -> None:
        """Record the calls of this process, and kill it before its n-th rename."""
        self.store.mkdir()
        log = os.open(self.store / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        seen = 0
        fsync, prefix = os.fsync, f"{self.root}{os.sep}"

        def write(*entry: Any) -> None:
            os.write(log, (json.dumps(entry) + "\n").encode())

        def recorded(descriptor: Any) -> None:
            fsync(descriptor)
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                write("folder", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            else:
                write("file", status.st_ino, status.st_size, status.st_mtime_ns)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event != "os.rename" or not os.fsdecode(arguments[1]).startswith(prefix):
                return
            seen += 1
            source, target = map(os.fsdecode, arguments[:2])
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            replaced = None
            if os.path.isfile(target):  # noqa: PTH113 - cheap, in a hook
                replaced = str(self.store / f"replaced-{seen}")
                os.link(target, replaced)
            write("rename", source, target, replaced)

        os.fsync = recorded
        sys.addaudithook(hook)

    def read(self) -> None:
        """Read what was recorded, in another process."""
        for line in (self.store / "journal").read_text().splitlines():
            match json.loads(line):
                case ["rename", source, target, replaced]:
                    before = None if replaced is None else Path(replaced)
                    self.renames.append((Path(source), Path(target), before))
                case ["folder", folder]:
                    self.renames = [r for r in self.renames if str(r[1].parent) != folder]
                case ["file", inode, *status]:
                    self.synced[inode] = (status[0], status[1])

    def lose(self, lost: tuple[int, ...], unsynced: Unsynced) -> None:
        """Make the folder as it may be after the loss.

        Args:
            lost: Numbers of the renames that did not reach the disk.
            unsynced: What became of contents that were not synced.
        """
        for number in sorted(lost, reverse=True):
            source, target, replaced = self.renames[number]
            with contextlib.suppress(FileNotFoundError):
                target.rename(source)
            if replaced is not None:
                shutil.copy2(replaced, target)
                self.keep(target)
        if unsynced == "kept":
            return
        for path in [p for p in self.root.rglob("*") if p.is_file()]:
            status = path.stat()
            if self.synced.get(status.st_ino) != (status.st_size, status.st_mtime_ns):
                path.unlink() if unsynced == "gone" else path.write_bytes(b"")

    def keep(self, path: Path) -> None:
        """Count a file as synced, as what was there before the run."""
        status = path.stat()
        self.synced[status.st_ino] = (status.st_size, status.st_mtime_ns)


def losses(
    run: Callable[[], Any], restore: Callable[[], None], root: Path, store: Path
) -> Iterator[str]:
    """Every state that a power loss at each rename of ``run`` may leave below ``root``.

    Args:
        run: What is interrupted.
        restore: Makes ``root`` as it is before.
        root: The folder.
        store: A new folder outside of it.

    Yields:
        A description of the state that ``root`` is in now.
    """
    for at in itertools.count(1):
        number, done = 0, False
        while not done:
            for unsynced in ("kept", "empty", "gone"):
                status, journal = _interrupted(run, restore, Journal(root, store), at)
                subsets = _subsets(len(journal.renames))
                journal.lose(subsets[number], unsynced)
                yield f"rename {at}, lost {subsets[number]}, contents {unsynced}"
            number += 1
            done = number == len(subsets)
        if status == 0:  # there is no such rename: the run was done
            return


def _subsets(count: int) -> list[tuple[int, ...]]:
    sizes = range(count + 1)
    return [chosen for size in sizes for chosen in itertools.combinations(range(count), size)]


def _interrupted(
    run: Callable[[], Any], restore: Callable[[], None], journal: Journal, at: int
) -> tuple[int, Journal]:
    """Run in a copy of this process that dies before its n-th rename; its status and what it did."""
    restore()
    shutil.rmtree(journal.store, ignore_errors=True)
    for path in journal.root.rglob("*"):
        if path.is_file():
            journal.keep(path)

    def dying() -> None:
        journal.start(at)
        run()

    status = in_a_copy(dying, journal.root).status
    journal.read()
    return status, journal
