"""Progress reporting: a protocol, so that the packages do not depend on the terminal."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives progress updates; ``cli`` shows them as bars on stderr. Tasks may be nested."""

    def start(self, label: str, total: int | None = None) -> None:
        """Start a task of ``total`` steps (``None``: unknown)."""

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Advance the innermost task by ``steps``; ``note`` replaces its remark."""

    def finish(self, note: str | None = None) -> None:
        """Finish the innermost task; ``note`` is its result."""


class Silent:
    """Ignores progress updates."""

    def start(self, label: str, total: int | None = None) -> None:
        """See `Progress.start`."""

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """See `Progress.advance`."""

    def finish(self, note: str | None = None) -> None:
        """See `Progress.finish`."""
