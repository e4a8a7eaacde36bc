"""Tools of the system that are run for what they print."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

__all__ = ["output_of"]


def output_of(command: Sequence[str], *, seconds: float = 30.0) -> str | None:
    """What a tool prints to its standard output.

    Args:
        command: The program and its arguments.
        seconds: How long it may take; it is killed after that.

    Returns:
        ``None`` where the tool cannot be started or does not end in time. Its exit status is not
        looked at.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout
