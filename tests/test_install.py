"""`make install`: what is pinned, and only that, and again after an interruption.

The environments here hold one small package of the test's own instead of gigabytes of libraries.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETS = ("dev", "default", "tensorrt", "tensorrt10", "cuda12")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the real installer, and a folder of wheels with one package.

    Its path has a space, as users' folders have.
    """
    folder = tmp_path / "a project"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "install.py", folder / "tools")
    _pin(folder, _wheel(folder / "wheels", "pinned_thing"))
    # Without a build backend: pip cannot install it, so the last step is left out below.
    return folder


def _wheel(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "VALUE = 1\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return path


def _pin(folder: Path, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "constraints").mkdir(exist_ok=True)
    text = f"pinned-thing==1.0 \\\n    --hash=sha256:{digest}\n"
    (folder / "constraints" / "dev.txt").write_text(text)


def _install(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installer without the step that installs the project itself."""
    code = (
        "import runpy, sys; sys.path.insert(0, 'tools'); import install;"
        "run = install.Installation._run;"
        "install.Installation._run = lambda self, *a: None if '-e' in a else run(self, *a);"
        "sys.argv[0] = 'install.py'; install.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "--wheels", "wheels", *arguments],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "PIP_NO_CACHE_DIR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def _has_package(project: Path) -> bool:
    python = project / ".venv" / "bin" / "python"
    done = subprocess.run([python, "-c", "import pinned_thing"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.long
def test_an_interrupted_installation_is_completed_by_the_next(project: Path) -> None:
    done = _install(project)
    assert done.returncode == 0, done.stderr
    assert _has_package(project)
    assert (project / ".venv" / ".installed").is_file()
    # What Ctrl-C leaves: the mark, and a package that is only there by name.
    (project / ".venv" / ".installing").touch()
    next((project / ".venv").glob("lib/*/site-packages/pinned_thing.py")).unlink()
    again = _install(project)
    assert again.returncode == 0, again.stderr
    assert "starting over" in again.stdout
    assert _has_package(project)
    assert not (project / ".venv" / ".installing").exists()


def test_a_wheel_with_another_hash_is_refused(project: Path) -> None:
    with zipfile.ZipFile(project / "wheels" / "pinned_thing-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("more.py", "")
    done = _install(project)
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()
    assert "make wheels" in done.stderr
    assert not (project / ".venv" / ".installed").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wheels", "nowhere"], "nowhere is not a folder"),
        (["--set", "nothing"], "there is no set 'nothing'"),
        (["--venv", "constraints"], "constraints is not a virtual environment"),
    ],
)
def test_what_cannot_be_installed_is_named(
    project: Path, arguments: list[str], message: str
) -> None:
    done = _install(project, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "hint: " in done.stderr
    assert (project / "constraints" / "dev.txt").is_file()


@pytest.mark.parametrize("name", SETS)
def test_constraints_name_versions_and_hashes_and_no_index(name: str) -> None:
    text = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    for block in re.split(r"\n(?=[a-z])", text.partition("make lock\n")[2].strip()):
        first, *hashes = block.splitlines()
        assert re.match(r"[a-z0-9.-]+==\S+", first), first
        assert hashes, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes)


def test_the_tests_run_with_what_every_set_pins() -> None:
    """One test run covers the sets, because they differ in what their ranges exclude only."""
    pins = {name: _pins(name) for name in SETS}
    for name in ("default", "tensorrt", "tensorrt10"):
        common = pins[name].keys() & pins["dev"].keys()
        assert {p: pins[name][p] for p in common} == {p: pins["dev"][p] for p in common}


def _pins(name: str) -> dict[str, str]:
    text = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))
