"""How long work reports that it moves: a protocol, so that no room knows the terminal."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """A place to report steps to; ``cli`` shows it as bars on stderr."""

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a piece of work of ``total`` steps (``None``: unknown)."""

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Report ``steps`` more steps of the work begun last; ``note`` replaces the short remark."""

    def finish(self, note: str | None = None) -> None:
        """End the work begun last; ``note`` says how it came out."""


class Silent:
    """Progress that nobody looks at."""

    def start(self, label: str, total: int | None = None) -> None:
        """See `Progress.start`."""

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """See `Progress.advance`."""

    def finish(self, note: str | None = None) -> None:
        """See `Progress.finish`."""
