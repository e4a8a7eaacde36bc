"""Relative links from a report to the files in the run folder that support its numbers."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

__all__ = ["Links"]


@dataclass(frozen=True)
class Links:
    """Links into one run folder.

    Attributes:
        folder: The run folder, relative to the folder of the report.
    """

    folder: Path = Path()

    def to(self, file: str | None) -> str | None:
        """A link to a file named in the results; ``None`` for an absolute path.

        Results name files relative to the run folder. An absolute path is valid on one machine only
        and gets no link. Everything except letters, digits and ``/._-~`` is quoted, so that no file
        name can be read as a scheme or end the attribute.
        """
        if not file or PurePosixPath(file).is_absolute() or "\0" in file:
            return None
        path = posixpath.normpath(posixpath.join(self.folder.as_posix(), file))
        return quote(path)

    @property
    def results(self) -> str:
        """The link to ``results.json``."""
        return self.to("results.json") or "results.json"

    @staticmethod
    def shown(file: str) -> str:
        """Display name of a file; only the last part of an absolute path."""
        return PurePosixPath(file).name if PurePosixPath(file).is_absolute() else file
