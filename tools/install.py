"""`make install`: the tested versions of ``constraints/`` into a virtual environment.

uv installs several times as fast as pip, so it is installed first, at its own tested version, where
it is not on the path. Whatever uv cannot do is left to pip, which also knows the index that this
machine's pip is configured for. Both check the hash of every file.

Needs nothing but the standard library. An installation that was interrupted leaves a mark, and the
next one starts over, because a half-installed package looks like an installed one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)
SIZE_GB = 8
"""Disk space that the largest set needs, with its downloads."""
FULL_GB = 1
"""Free space below which a failure is most likely a full disk."""
INTERRUPTED = 130


class Installation:
    """A virtual environment and the commands that fill it.

    Args:
        folder: The environment.
        name: The set of packages, a file in ``constraints/``.
        wheels: A folder with all packages, used instead of the package index.
    """

    def __init__(self, folder: Path, name: str, wheels: Path | None) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.mark = folder / ".installing"
        self.stamp = folder / ".installed"
        self.constraints = ROOT / "constraints" / f"{name}.txt"
        self.source = (
            [] if wheels is None else ["--no-index", "--find-links", str(wheels.resolve())]
        )
        self.uv: str | None = None

    def install(self) -> None:
        """Install the set and this package, completely or with the mark left behind.

        Raises:
            SystemExit: A command failed; it has said why.
        """
        self._make_environment()
        self.mark.touch()
        self.stamp.unlink(missing_ok=True)
        self.uv = shutil.which("uv") or self._own_uv()
        print(f"installing {self.constraints.stem} into {self.folder}", flush=True)
        # The file names every package, so nothing is left to resolve.
        self._run("--no-deps", "--require-hashes", "-r", str(self.constraints))
        self._run("--no-deps", "--no-build-isolation", "-e", str(ROOT))
        self.mark.unlink()
        self.stamp.touch()

    def _own_uv(self) -> str | None:
        """Install uv alone into the environment; ``None`` if that fails."""
        text = (ROOT / "constraints" / "dev.txt").read_text(encoding="utf-8")
        # One requirement: its line and the indented lines with its hashes.
        lines = re.search(r"^uv==.*\n(?:[ ]+--hash.*\n?)+", text, re.MULTILINE)
        if lines is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "uv.txt"
            file.write_text(lines.group(), encoding="utf-8")
            command = [*self._pip(), "--no-deps", "--require-hashes", "-r", str(file)]
            failed = subprocess.run(command, check=False).returncode
        return None if failed else str(self.folder / "bin" / "uv")

    def _make_environment(self) -> None:
        """Make the environment, again if it is damaged or was only half filled."""
        clear = []
        if self.folder.exists():
            if not self.mark.exists() and self._works():
                return
            if not (self.folder / "pyvenv.cfg").exists() and any(self.folder.iterdir()):
                sys.exit(
                    f"{self.folder} is not a virtual environment\nhint: remove it, or move it away"
                )
            print(f"{self.folder} is incomplete (an installation was interrupted): starting over")
            clear = ["--clear"]
        self._checked([sys.executable, "-m", "venv", *clear, str(self.folder)])

    def _works(self) -> bool:
        command = [str(self.python), "-m", "pip", "--version"]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:  # no interpreter, or one that was removed from this machine
            return False

    def _run(self, *arguments: str) -> None:
        if self.uv:
            # Without bytecode, each process that imports torch compiles it again: 4 s of CPU time.
            tool = [self.uv, "pip", "install", "--quiet", "--compile-bytecode"]
            tool += ["--python", str(self.python)]
            if not subprocess.run([*tool, *self.source, *arguments], check=False).returncode:
                return
            print("uv failed (see above): going on with pip", flush=True)
            self.uv = None
        self._checked([*self._pip(), *arguments])

    def _pip(self) -> list[str]:
        return [str(self.python), "-m", "pip", "install", "--quiet", *self.source]

    def _checked(self, command: Sequence[str]) -> None:
        status = subprocess.run(command, check=False).returncode
        if status:
            sys.exit(f"the installation failed (exit {status})\nhint: {self.advice()}")

    def advice(self) -> str:
        """What to do after a failure, in one line."""
        for folder in (self.folder, Path(os.environ.get("TMPDIR", "/tmp"))):
            place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            free = shutil.disk_usage(place).free / 1e9
            if free < FULL_GB:
                return (
                    f"{place} has {free:.1f} GB left and about {SIZE_GB} GB are needed; "
                    "free some, then `make install` again"
                )
        if self.source:
            return "fill the folder of wheels with `make wheels WHEELS=DIR` on a machine with a network"
        return "see the message above, then `make install` again; without a network: WHEELS=DIR"


def fill_wheelhouse(installation: Installation, wheels: Path) -> None:
    """Download every package of the set into a folder, for ``make install WHEELS=DIR``."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    constraints = ["--require-hashes", "-r", str(installation.constraints)]
    # The second line is what the source packages of the set are built with.
    for what in (constraints, ["setuptools", "wheel"]):
        status = subprocess.run([*pip, *what], check=False).returncode
        if status:
            sys.exit(f"the download failed (exit {status})\nhint: {installation.advice()}")


def main() -> None:
    """Parse the command line and install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="the environment")
    parser.add_argument("--set", default="dev", help="a file of constraints/, without .txt")
    parser.add_argument("--wheels", type=Path, help="a folder with all packages")
    parser.add_argument("--download", action="store_true", help="fill the folder of --wheels")
    options = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("Python 3.11 or later is needed\nhint: say which: make PYTHON=python3.12 install")
    if options.wheels is not None and not options.download and not options.wheels.is_dir():
        sys.exit(f"{options.wheels} is not a folder\nhint: make wheels WHEELS={options.wheels}")
    installation = Installation(options.venv, options.set, options.wheels)
    if not installation.constraints.is_file():
        sets = ", ".join(
            sorted(path.stem for path in installation.constraints.parent.glob("*.txt"))
        )
        sys.exit(f"there is no set {options.set!r}\nhint: one of {sets}")
    try:
        if options.download:
            fill_wheelhouse(installation, options.wheels)
        else:
            installation.install()
    except KeyboardInterrupt:
        print("\ninterrupted; `make install` again completes it", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
