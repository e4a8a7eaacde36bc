"""Where a result may go: told before the work, not after it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from optimizer.errors import EnvironmentFault, UsageError

__all__ = ["check_output"]


def check_output(output: Path, inputs: Iterable[Path | str | None] = ()) -> None:
    """Refuse a place where nothing can be written, or where what is read lies.

    Args:
        output: The file to be written.
        inputs: What is read; names that are no files (``digits:train``) are passed over.

    Raises:
        UsageError: ``output`` is a folder, or one of the inputs.
        EnvironmentFault: Nothing can be written there.
    """
    if output.is_dir():
        raise UsageError(f"{output} is a folder", hint="-o with the name of a file")
    for path in [Path(given) for given in inputs if given]:
        if output.exists() and path.is_file() and output.samefile(path):
            raise UsageError(
                f"{path.name} would be overwritten by itself", hint="-o with another name"
            )
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):  # leaves nothing, whatever comes of the work
            pass
    except OSError as error:
        raise EnvironmentFault(
            f"{output} cannot be written: {error.strerror or error}", hint="-o with another folder"
        ) from error
