"""`make test-floors`, `make test-newest`: the demo and fast tests with other versions than the pinned.

``floors`` are the lowest versions that ``pyproject.toml`` admits for the packages it names, ``newest``
the newest of everything. Each is installed into a fresh environment, which is removed afterwards.
``pinned`` runs the same in the environment that ``make install`` made, or with another interpreter in
a fresh environment of the same versions.

The tests end after ``--minutes``; the outcome says then that not all of them were run.

Without a package index the run is skipped and says so. With ``--record`` the outcome is written to
``reports/compatibility/`` and to the table of ``docs/compatibility.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "reports" / "compatibility"
PAGE = ROOT / "docs" / "compatibility.md"
SELECTIONS = {"pinned": None, "floors": "lowest-direct", "newest": "highest"}
"""uv's resolution for each selection; ``None`` for the versions of ``constraints/dev.txt``."""
EXTRAS = ("loadgen", "dev")
FAST_TESTS = (
    "tests/data", "tests/engines/test_backends.py", "tests/exporting", "tests/graphs",
    "tests/models", "tests/options", "tests/precision/test_half.py", "tests/precision/test_statistics.py",
    "tests/precision/test_int8_graphs.py", "tests/targets", "tests/test_api.py", "tests/test_artifacts.py",
    "tests/test_environment.py", "tests/test_units.py",
)  # fmt: skip
"""Tests of the rooms that touch the libraries, without training and whole networks."""
DEMO = ("demo", "--arch", "resnet18", "--duration", "500ms")
TABLE = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "openvino", "numpy", "scipy",
         "pillow", "cyclopts", "pydantic")  # fmt: skip
"""The libraries in the table of ``docs/compatibility.md``."""
INCONCLUSIVE = 6
_PYTEST_INTERRUPTED = 2
_NO_INDEX = re.compile(
    r"error sending request|client error|dns error|failed to lookup|timed out|connection (refused|reset)"
    r"|network is unreachable|could not connect|request failed after|50[0-9] (bad|service|gateway)",
    re.IGNORECASE,
)


class NoIndex(Exception):  # noqa: N818 - a reason to skip, not an error
    """The package index cannot be reached."""


@dataclass(frozen=True)
class Outcome:
    """What was run with one selection of versions.

    Attributes:
        selection: ``pinned``, ``floors`` or ``newest``.
        python: Version of the interpreter.
        system: Operating system and processor architecture.
        versions: Installed versions, by package.
        demo: Exit code of the demo.
        passed: Number of tests that passed.
        failed: Number of tests that failed or could not start.
        skipped: Number of tests that were skipped.
        stopped: Whether the time was over before all tests had been run.
    """

    selection: str
    python: str
    system: str
    versions: dict[str, str]
    demo: int
    passed: int
    failed: int
    skipped: int
    stopped: bool = False

    @property
    def holds(self) -> bool:
        """Whether everything passed; a machine too busy to measure does not count against it."""
        return self.demo in {0, INCONCLUSIVE} and self.failed == 0 and self.passed > 0

    def line(self) -> str:
        """The outcome in one line."""
        demo = {0: "passed", INCONCLUSIVE: "ran, inconclusive"}.get(self.demo, f"exit {self.demo}")
        return f"{self.selection} (Python {self.python}): demo {demo}; tests: {self.tests}"

    @property
    def tests(self) -> str:
        """The numbers of tests in words."""
        end = ", the others not run for lack of time" if self.stopped else ""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped{end}"


def install(uv: str, resolution: str | None, python: str, folder: Path) -> Path:
    """Install one selection into a fresh environment.

    Args:
        uv: The executable.
        resolution: uv's ``--resolution``; ``None`` for ``constraints/dev.txt``.
        python: The interpreter to use.
        folder: The environment.

    Returns:
        The environment's interpreter.

    Raises:
        NoIndex: The package index cannot be reached.
        SystemExit: The ranges cannot be resolved or installed; uv has said why.
    """
    interpreter = folder / "bin" / "python"
    _uv([uv, "venv", "--quiet", "--clear", "--python", python, str(folder)])
    if resolution is None:
        source = ["--no-deps", "--require-hashes", "-r", "constraints/dev.txt"]
    else:
        locked = folder.with_suffix(".txt")
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        _uv([uv, "pip", "compile", "--quiet", "pyproject.toml", *extras, "--resolution", resolution,
             "--python", str(interpreter), "--output-file", str(locked)])  # fmt: skip
        source = ["-r", str(locked)]
    into = ["--quiet", "--compile-bytecode", "--python", str(interpreter)]
    _uv([uv, "pip", "install", *into, *source])
    _uv([uv, "pip", "install", *into, "--no-deps", "--no-build-isolation", str(ROOT)])
    return interpreter


def _uv(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return
    if _NO_INDEX.search(done.stderr):
        raise NoIndex(done.stderr.strip().splitlines()[-1].strip())
    sys.exit(f"{done.stderr.strip()}\n{' '.join(command[:3])} failed (exit {done.returncode})")


def run(selection: str, python: Path, folder: Path, *, minutes: float) -> Outcome:
    """Run the demo and the fast tests with an interpreter, in an empty folder.

    Args:
        selection: Its name.
        python: The interpreter, in whose environment the package is installed.
        folder: Where the run's files go.
        minutes: Time for the tests.
    """
    demo = subprocess.run(
        [str(python), "-m", "optimizer", *DEMO], cwd=folder, env=_environment(folder), check=False
    )
    results = folder / "tests.xml"
    tests = [name for name in FAST_TESTS if (ROOT / name).exists()]
    pytest = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", "--maxprocesses", "4",
         "--dist", "worksteal", "-m", "not gpu and not slow and not long", f"--junitxml={results}",
         f"--session-timeout={60 * minutes:.0f}",
         *tests],
        cwd=ROOT, env=_environment(folder) | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    facts = subprocess.run(
        [str(python), "-c", _FACTS], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    passed, failed, skipped = _counts(results)
    return Outcome(
        selection=selection,
        demo=demo.returncode,
        passed=passed,
        failed=failed,
        skipped=skipped,
        stopped=pytest.returncode == _PYTEST_INTERRUPTED,
        **json.loads(facts.stdout),
    )


_FACTS = """\
import json, platform
from importlib import metadata
print(json.dumps({
    "python": platform.python_version(),
    "system": f"{platform.system()} {platform.machine()}",
    "versions": {d.name: d.version for d in metadata.distributions()},
}))
"""


def _environment(folder: Path) -> dict[str, str]:
    """The caller's environment with a cache of its own, so that everything is built."""
    return {**os.environ, "RESNET_OPT_CACHE": str(folder / "cache")}


def _counts(results: Path) -> tuple[int, int, int]:
    """Numbers of tests that passed, failed and were skipped, from pytest's XML."""
    if not results.is_file():  # pytest did not start
        return 0, 1, 0
    suites = list(ET.parse(results).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(name, "0")) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return total - failed - skipped, failed, skipped


def table(outcomes: Sequence[Mapping[str, object]]) -> str:
    """The table of ``docs/compatibility.md``: a column per outcome.

    Args:
        outcomes: `Outcome` as dictionaries, as in ``reports/compatibility/``.
    """
    if not outcomes:
        return "Nothing is recorded yet."
    shown = [Outcome(**outcome) for outcome in outcomes]  # type: ignore[arg-type]
    heads = [f"{outcome.selection}, Python {outcome.python}" for outcome in shown]
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    lines += [[name, *(_version(o, name) for o in shown)] for name in TABLE]
    lines += [
        ["system", *(o.system for o in shown)],
        ["demo", *("passed" if o.demo == 0 else f"exit {o.demo}" for o in shown)],
        [
            "fast tests",
            *(o.tests for o in shown),
        ],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _version(outcome: Outcome, name: str) -> str:
    plain = {key.lower().replace("_", "-"): value for key, value in outcome.versions.items()}
    return plain.get(name, "–")


def record(outcome: Outcome) -> None:
    """Write an outcome to ``reports/compatibility/`` and the table to ``docs/compatibility.md``."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    minor = ".".join(outcome.python.split(".")[:2])
    file = RECORDS / f"{outcome.selection}-{minor}.json"
    file.write_text(json.dumps(asdict(outcome), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, recorded()), encoding="utf-8")


def recorded() -> list[dict[str, object]]:
    """The recorded outcomes, in the order of `SELECTIONS` and by Python."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))
    ]
    return sorted(found, key=lambda outcome: list(SELECTIONS).index(outcome["selection"]))


def with_table(page: str, outcomes: Sequence[Mapping[str, object]]) -> str:
    """The page with the table between its markers replaced."""
    start, end = "<!-- versions -->\n", "\n<!-- /versions -->"
    before, _, rest = page.partition(start)
    return f"{before}{start}{table(outcomes)}{end}{rest.partition(end)[2]}"


def main() -> None:
    """Install, run, print one line, and exit with 1 unless everything passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("selection", choices=SELECTIONS)
    parser.add_argument("--uv", default="uv", help="the uv executable")
    parser.add_argument("--python", default=sys.executable, help="the interpreter to test with")
    parser.add_argument("--minutes", type=float, default=10, help="time for the tests")
    parser.add_argument("--record", action="store_true", help="write reports/ and docs/")
    options = parser.parse_args()
    resolution = SELECTIONS[options.selection]
    with tempfile.TemporaryDirectory(prefix="resnet-opt-versions.") as name:
        folder = Path(name)
        python = Path(options.python)
        if resolution is not None or Path(options.python).absolute() != Path(sys.executable):
            if shutil.which(options.uv) is None:
                sys.exit(f"{options.uv} is not there\nhint: make install")
            try:
                python = install(options.uv, resolution, options.python, folder / "environment")
            except NoIndex as reason:
                print(
                    f"{options.selection}: skipped, the package index cannot be reached: {reason}"
                )
                return
        outcome = run(options.selection, python, folder, minutes=options.minutes)
    if options.record:
        record(outcome)
    print(outcome.line())
    sys.exit(not outcome.holds)


if __name__ == "__main__":
    main()
