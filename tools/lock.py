"""`make lock`: writes ``constraints/``, the exact versions and hashes of each set of packages.

A set is this package with some of its extras. `dev` is what ``make install`` installs and the tests
run with. The other sets take the versions of `dev` wherever their ranges admit them, so that one
test run covers all of them. Versions that are already in a file are kept; ``--upgrade`` takes the
newest ones.

The files hold hashes for every platform and Python that the ranges admit, and name no index.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints"
OLDEST_PYTHON = "3.11"

SETS = {
    "dev": ("tensorrt-rtx", "cuda", "loadgen", "dev"),
    "default": ("tensorrt-rtx",),
    "tensorrt": ("tensorrt", "cuda"),
    "tensorrt10": ("tensorrt10", "cuda"),
    "cuda12": ("cuda12", "tensorrt-cuda12"),
}
"""Extras of each set, in the order of resolution."""
OWN_VERSIONS = ("cuda12",)
"""Sets whose ranges exclude versions of `dev`: PyTorch and ONNX Runtime for an older CUDA."""


def compile_command(uv: str, name: str, output: Path, *, upgrade: bool) -> list[str]:
    """The command that resolves one set into ``output``.

    Args:
        uv: The executable.
        name: One of `SETS`.
        output: The file to write; the versions in it are kept unless ``upgrade``.
        upgrade: Take the newest versions that the ranges admit.
    """
    command = [
        uv, "pip", "compile", "--quiet", "pyproject.toml",
        "--universal", "--fork-strategy", "fewest", "--python-version", OLDEST_PYTHON,
        "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate",
        "--custom-compile-command", "make lock", "--output-file", str(output),
    ]  # fmt: skip
    for extra in SETS[name]:
        command += ["--extra", extra]
    if name != "dev" and name not in OWN_VERSIONS:
        command += ["--constraints", str(CONSTRAINTS / "dev.txt")]
    return [*command, "--upgrade"] if upgrade else command


def lock(uv: str, *, upgrade: bool) -> list[str]:
    """Resolve every set; a set that cannot be resolved leaves its file as it was.

    Returns:
        The names of the sets whose file changed.

    Raises:
        SystemExit: A set cannot be resolved; uv has said why.
    """
    changed = []
    CONSTRAINTS.mkdir(exist_ok=True)
    for name in SETS:
        target = CONSTRAINTS / f"{name}.txt"
        before = target.read_text(encoding="utf-8") if target.exists() else ""
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / target.name
            draft.write_text(before, encoding="utf-8")
            command = compile_command(uv, name, draft, upgrade=upgrade)
            done = subprocess.run(command, cwd=ROOT, check=False)
            if done.returncode:
                sys.exit(
                    f"the set {name!r} cannot be resolved; constraints/{name}.txt is unchanged"
                )
            after = draft.read_text(encoding="utf-8")
        if after != before:
            target.write_text(after, encoding="utf-8")
            changed.append(name)
    return changed


def main() -> None:
    """Write ``constraints/`` and say what changed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--uv", default="uv", help="the uv executable")
    options = parser.parse_args()
    changed = lock(options.uv, upgrade=options.upgrade)
    print(f"constraints/: {', '.join(changed) or 'nothing'} changed")


if __name__ == "__main__":
    main()
