"""``python -m optimizer``, for torchrun and if the script is not on the PATH."""

import os
import sys


def _remove_current_folder() -> None:
    """Remove the current folder from ``sys.path``, where its files would shadow any library."""
    try:
        folder = os.getcwd()  # noqa: PTH109 - a string, as in `sys.path`
    except OSError:  # the folder was deleted
        return
    if not sys.flags.safe_path and sys.path[:1] == [folder]:
        del sys.path[0]


_remove_current_folder()

from optimizer.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
