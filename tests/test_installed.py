"""Versions outside the declared ranges are named, with the command that mends them."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimizer import installed
from optimizer.cli import app
from optimizer.installed import command_for, commit_of, conflicts_with, version_conflicts

NUMPY = metadata.version("numpy")


def test_this_environment_has_none() -> None:
    assert version_conflicts() == []
    assert command_for([]) is None


@pytest.mark.parametrize(
    ("requirement", "text"),
    [
        ("numpy<1.0", f"numpy has version {NUMPY}, but resnet-opt needs numpy<1.0"),
        (
            "not-a-package-of-anybody>=2",
            "not-a-package-of-anybody is not installed, but resnet-opt needs not-a-package-of-anybody>=2",
        ),
    ],
)
def test_a_conflict_is_named(requirement: str, text: str) -> None:
    (conflict,) = conflicts_with([requirement, "numpy>=1.0"])
    assert conflict.text == text
    assert command_for([conflict]) == f"pip install '{requirement}'"


@pytest.mark.parametrize(
    "requirement",
    [
        "numpy<1.0; sys_platform == 'win32'",
        "numpy<1.0; extra == 'dev'",
        "not a requirement",
        f"numpy=={NUMPY}",
    ],
)
def test_what_does_not_apply_is_no_conflict(requirement: str) -> None:
    assert conflicts_with([requirement]) == []


def test_a_failure_names_the_conflict_instead_of_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ImportError("cannot import name 'x' from 'numpy'")

    monkeypatch.setattr(app, "app", SimpleNamespace(meta=fail))
    assert app.run_command_line(["doctor"]) == 1
    assert "internal error" in capsys.readouterr().err
    wrong = conflicts_with(["numpy<1.0"])
    monkeypatch.setattr(installed, "version_conflicts", lambda: wrong)
    assert app.run_command_line(["doctor"]) == 3
    shown = capsys.readouterr().err
    assert f"numpy has version {NUMPY}, but resnet-opt needs numpy<1.0" in shown
    assert "cannot import name" in shown
    assert "pip install 'numpy<1.0'" in shown


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_this_checkout_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b.c")
    git = ["git", "-C", str(tmp_path)]
    file = tmp_path / "file"
    file.write_text("first")
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit_of(tmp_path) is None, "there is no commit yet"
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    commit = commit_of(tmp_path)
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{12}", commit)
    file.write_text("second")
    assert commit_of(tmp_path) == f"{commit}-modified"
    (tmp_path / "site-packages").mkdir()
    assert commit_of(tmp_path / "site-packages") is None, "somebody else's checkout"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path) is None, "git is not installed"
