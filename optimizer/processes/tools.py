"""Runs system tools for their output."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

__all__ = ["output_of"]


def output_of(command: Sequence[str], *, seconds: float = 30.0) -> str | None:
    """Run a tool and return its standard output, whatever its exit status.

    Args:
        command: The program and its arguments.
        seconds: Time limit, after which the tool is killed.

    Returns:
        ``None`` if the tool cannot be started or exceeds the time limit.
    """
    try:
        completed = subprocess.run(
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
    return completed.stdout
