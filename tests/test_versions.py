"""`make test-floors` and its relatives: what they count, record and skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from versions import PAGE, SELECTIONS, Outcome, _counts, recorded, with_table

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
GOOD = Outcome(
    selection="floors",
    python="3.11.7",
    system="Linux x86_64",
    versions={"onnx_ir": "0.1.15", "torch": "2.10.0"},
    demo=0,
    passed=10,
    failed=0,
    skipped=1,
)


def test_what_counts_as_holding() -> None:
    assert GOOD.holds
    assert replace(GOOD, demo=6).holds, "a busy machine is no fault of the versions"
    assert not replace(GOOD, demo=2).holds
    assert not replace(GOOD, failed=1).holds
    assert not replace(GOOD, passed=0).holds
    assert "demo passed; tests: 10 passed, 0 failed, 1 skipped" in GOOD.line()
    stopped = replace(GOOD, stopped=True)
    assert stopped.holds
    assert stopped.line().endswith("1 skipped, the others not run for lack of time")


def test_counts_are_those_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert False\n"
        "def test_cannot_start(nothing): pass\n"
        "def test_is_skipped(): pytest.skip('why')\n"
    )
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--junitxml=out.xml",
    ]
    subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, check=False)
    assert _counts(tmp_path / "out.xml") == (1, 2, 1)
    assert _counts(tmp_path / "missing.xml") == (0, 1, 0)


def test_the_page_shows_what_is_recorded() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, recorded()) == page
    text = with_table(page, [asdict(GOOD)])
    assert "| torch | 2.10.0 |" in text
    assert "| onnx-ir | 0.1.15 |" in text
    assert "| fast tests | 10 passed, 0 failed, 1 skipped |" in text
    assert {outcome["selection"] for outcome in recorded()} <= set(SELECTIONS)


@pytest.mark.skipif(UV is None, reason="uv is not installed: make install")
def test_without_an_index_the_run_is_skipped_and_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "tools/versions.py", "floors", "--uv", str(UV)],
        cwd=ROOT,
        # Nothing listens on the discard port of this machine.
        env={
            "PATH": os.environ["PATH"],
            "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
            "UV_NO_CACHE": "1",
            "UV_HTTP_RETRIES": "0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "floors: skipped, the package index cannot be reached" in done.stdout
