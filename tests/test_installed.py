"""Versions outside the declared ranges are named, with the command that mends them."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace

import pytest

from optimizer import installed
from optimizer.cli import app
from optimizer.installed import command_for, conflicts_with, version_conflicts

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
