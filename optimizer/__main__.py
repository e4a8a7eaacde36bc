"""``python -m optimizer``, for torchrun and for machines without the script on the PATH."""

import os
import sys


def _without_current_folder() -> None:
    """`python -m` searches it first, and a file there may carry the name of any library."""
    try:
        here = os.getcwd()  # noqa: PTH109 - a string, as `sys.path` has it
    except OSError:  # it was deleted
        return
    if not sys.flags.safe_path and sys.path[:1] == [here]:
        del sys.path[0]


_without_current_folder()

from optimizer.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
