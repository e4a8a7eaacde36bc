"""Checks of output paths, made before the work starts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from optimizer.errors import EnvironmentFault, UsageError

__all__ = ["check_output"]


def check_output(output: Path, inputs: Iterable[Path | str | None] = ()) -> None:
    """Check that an output can be written and is not one of the inputs.

    Args:
        output: The file to be written.
        inputs: The inputs; names that are not files (``digits:train``) are ignored.

    Raises:
        UsageError: ``output`` is a folder, or one of the inputs.
        EnvironmentFault: ``output`` cannot be written.
    """
    if output.is_dir():
        raise UsageError(f"{output} is a folder", hint="-o FILE")
    for path in [Path(name) for name in inputs if name]:
        if output.exists() and path.is_file() and output.samefile(path):
            raise UsageError(
                f"the output would overwrite the input {path.name}", hint="-o with another name"
            )
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EnvironmentFault(
            f"{output} cannot be written: {error.strerror or error}",
            hint="-o with a file in another folder",
        ) from error
