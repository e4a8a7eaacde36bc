"""Folders that libraries expect and containers lack: a home, and one for temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["hint_for_temporary_files", "home_variable"]


def home_variable(environment: Mapping[str, str]) -> dict[str, str]:
    """``HOME``, if there is neither that variable nor an entry for this user.

    ``import openvino`` ends with ``RuntimeError`` there, and so does ``pathlib.Path.home``. It becomes
    ``/``, as container engines set it for such users; nothing can be stored there.

    Args:
        environment: The environment variables.

    Returns:
        The variables to add; usually none.
    """
    if "HOME" in environment:
        return {}
    try:
        Path.home()
    except RuntimeError:
        return {"HOME": "/"}
    return {}


def hint_for_temporary_files() -> str | None:
    """What to do where no folder for temporary files can be written; ``None`` if there is one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return "set TMPDIR to a folder that can be written"
    return None
