"""Runs the command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from optimizer.cli import main


@dataclass
class Completed:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error")]


Command = Callable[..., Completed]


@pytest.fixture
def resnet_opt(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Command:
    cache = tmp_path_factory.getbasetemp() / "cli-cache"
    monkeypatch.setenv("RESNET_OPT_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: object) -> Completed:
        monkeypatch.setattr(sys, "argv", ["resnet-opt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Completed(int(stop.value.code or 0), captured.out, captured.err)

    return run
