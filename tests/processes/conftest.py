"""A trap folder, and helpers that wait for processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from tests.profiling.conftest import make_engine  # noqa: F401

ROOT = Path(__file__).parents[2]


class Trap:
    """A folder of files with the names of libraries, which record that they were executed."""

    def __init__(self, root: Path, names: Iterable[str] | None = None) -> None:
        self.folder = root / "trap"
        self._marker = root / "executed"
        self.folder.mkdir()
        if names is None:
            names = {*sys.stdlib_module_names, *metadata.packages_distributions()}
            names |= {"sitecustomize", "usercustomize", "optimizer"}
        for name in names:
            if name.isidentifier():
                self.set(name)

    def set(self, name: str) -> None:
        """Add one trap."""
        code = (
            f"with open({str(self._marker)!r}, 'a') as file: file.write({name!r} + ' ')\n"
            f"raise ImportError('executed in the current folder: {name}')\n"
        )
        (self.folder / f"{name}.py").write_text(code)

    @property
    def executed(self) -> str:
        """Names of the files that were executed."""
        return self._marker.read_text() if self._marker.exists() else ""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    """Make a trap folder the current folder."""
    trap = Trap(tmp_path)
    monkeypatch.chdir(trap.folder)
    return trap


def assert_gone(processes: Iterable[psutil.Process]) -> None:
    """Wait until none of the processes is running."""
    remaining = list(processes)
    assert remaining
    end = time.monotonic() + 60
    while remaining:
        assert time.monotonic() < end, f"still running: {remaining}"
        remaining = [process for process in remaining if runs(process)]
        time.sleep(0.02)


def runs(process: psutil.Process) -> bool:
    """Whether a process is running; zombies are not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_text(path: Path) -> str:
    """Wait for another process to write a file, and return the text."""
    end = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"nothing was written to {path}"
        time.sleep(0.02)
    return path.read_text()
