"""What several tests need is made once a run, by the process that comes first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

__all__ = ["Shared"]


class Shared:
    """Folders that all processes of a test run read; nobody may change what is in them.

    Args:
        config: Where pytest's cache is, if it has one.
        factory: Knows the folder of this process, which lies in that of the run.
    """

    def __init__(self, config: pytest.Config, factory: pytest.TempPathFactory) -> None:
        own = factory.getbasetemp()
        of_run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
        self._run = of_run / "shared"
        cache: pytest.Cache | None = getattr(config, "cache", None)  # -p no:cacheprovider
        self._kept = self._run if cache is None else cache.mkdir("shared")

    def __call__(self, name: str, make: Callable[[Path], object], *, keep: bool = False) -> Path:
        """The folder of this name, which `make` fills if nobody has yet; others wait meanwhile.

        Args:
            name: What is in it, and of which version, if it is kept.
            make: Fills the folder; if it fails, the next one who asks tries again.
            keep: Let later runs find it too, in pytest's cache.
        """
        root = self._kept if keep else self._run
        root.mkdir(parents=True, exist_ok=True)
        folder, complete = root / name, root / f"{name}.complete"
        with FileLock(root / f"{name}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                complete.touch()
        return folder
