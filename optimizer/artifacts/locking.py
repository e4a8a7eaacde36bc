"""Locks between processes: whoever waits is told for what, and not forever."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from optimizer.errors import EnvironmentFault
from optimizer.units import format_duration

__all__ = ["LOCK_SECONDS", "locked"]

LOCK_SECONDS = 3600.0
"""How long to wait by default: longer than most builds."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock that at most one process holds.

    Args:
        path: The lock's file; it stays.
        seconds: How long to wait for another process.

    Raises:
        EnvironmentFault: Another process holds the lock for longer.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning(
            "waiting up to %s for another process that makes the same artifact (%s)",
            format_duration(seconds), path,
        )  # fmt: skip
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise EnvironmentFault(
                f"another process has held {path} for {format_duration(seconds)}",
                hint="wait for it or end it, set a longer --lock-timeout, or use --no-cache",
            ) from error
    try:
        yield
    finally:
        lock.release()
