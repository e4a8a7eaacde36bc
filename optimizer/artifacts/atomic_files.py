"""Atomic file writes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optimizer.errors import ArtifactError

__all__ = ["write_atomically", "write_text_atomically"]


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it into place on success.

    The temporary name keeps the suffix, because some libraries choose the format by it. On any
    exception, including an interrupt, the temporary file is removed and ``path`` is untouched.

    Raises:
        ArtifactError: Nothing was written to the temporary path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if not temporary.is_file():
            raise ArtifactError(f"nothing was written for {path}")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp sets 0600, which other users cannot read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; see `write_atomically`."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
