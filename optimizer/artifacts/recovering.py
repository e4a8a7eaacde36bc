"""What a run that was killed left behind: completed where its work is whole, else removed.

A file without the manifest that belongs to it is completed if the manifest is still there under its
temporary name (see `optimizer.artifacts.atomic_files`). Everything else under a temporary name is
removed. Nothing of a process that still runs is touched.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

from optimizer.artifacts.keys import digest
from optimizer.artifacts.leftovers import leftovers, remove
from optimizer.errors import ArtifactError

__all__ = ["clean_up_after_crashes"]

_log = logging.getLogger(__name__)
_LARGEST_MANIFEST = 1 << 28


def clean_up_after_crashes(folders: Iterable[Path]) -> None:
    """Complete or remove what dead processes left in ``folders`` and in the temporary folder."""
    for path in leftovers([*folders, Path(tempfile.gettempdir())]):
        if path.suffix == ".json" and path.is_file() and not path.is_symlink():
            _complete(path)
        if path.exists():
            _log.info("remove %s, left by a process that was killed", path)
            remove(path)


def _complete(sidecar: Path) -> None:
    """Give a manifest its name if the file it describes has its own."""
    with contextlib.suppress(OSError, ValueError, RecursionError, ArtifactError):
        if sidecar.stat().st_size > _LARGEST_MANIFEST:
            return
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
        name = raw.get("file") if isinstance(raw, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            return
        artifact = sidecar.with_name(name)
        if artifact.is_file() and digest(artifact) == raw.get("sha256"):
            sidecar.replace(sidecar.with_name(f"{name}.json"))
            _log.info("completed %s, whose manifest had not been renamed", artifact)
