"""The application: what holds for every command."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import pytest

from optimizer.cli.app import app
from optimizer.cli.commands import PANELS
from optimizer.cli.console import HEARTBEAT_S, Lines, console

from .conftest import Command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_flags_and_choices(resnet_opt: Command, shell: str) -> None:
    done = resnet_opt("--show-completion", shell)
    assert done.code == 0, done.err
    assert "bias-correction" in done.out
    assert "bf16" in done.out


def test_every_flag_has_help() -> None:
    for command in (command for panel in PANELS.values() for command in panel):
        for argument in app[command.__name__.replace("_", "-")].assemble_argument_collection():
            if not argument.children:  # those with children are groups of flags
                assert argument.parameter.help, (command.__name__, argument.name)


def test_no_command_spells_an_option() -> None:
    """Flags come from the models; a command adds where things go and how they are printed."""
    allowed = {
        "output", "as_json", "no_cache", "force", "dry_run", "save_recipe", "layers", "record", "diff",
        "save_intermediates", "flags", "model",
    }  # fmt: skip
    for command in (command for panel in PANELS.values() for command in panel):
        keywords = {
            name
            for name, parameter in inspect.signature(command).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        assert keywords - {"options"} <= allowed, command.__name__


def test_a_log_file_holds_every_detail(resnet_opt: Command, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    done = resnet_opt("--log-file", log, "export", "resnet18:random", "-o", tmp_path / "m.onnx")
    assert done.code == 0, done.err
    text = log.read_text(encoding="utf-8")
    assert "optimizer.cli.console: export" in text
    assert "optimizer.artifacts.producing: build graph" in text
    assert f"wrote {tmp_path / 'm.onnx'}" in text
    done = resnet_opt("doctor", "--log-file", tmp_path / "none" / "log.txt")
    assert done.code == 2
    assert "cannot write the log" in done.err
    for handler in list(logging.getLogger("optimizer").handlers):
        logging.getLogger("optimizer").removeHandler(handler)
        handler.close()


def test_long_work_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A line every half minute by the clock that is handed in, whatever the machine does."""
    now = 0.0
    lines = Lines(console(), clock=lambda: now)
    lines.start("training", total=100)
    for step in range(100):
        now = step * HEARTBEAT_S / 10
        lines.advance(note=f"loss {step}")
    lines.finish()
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 9 + 1
    assert "training ... 11 of 100 after" in printed[0]
    assert printed[0].endswith("loss 10")


@pytest.mark.parametrize(
    ("line", "text", "hint"),
    [
        ("export model.pth", "--output is missing", "resnet-opt export --help"),
        ("build m.onnx -o", "-o needs a value", "resnet-opt build --help"),
        (
            "build m.onnx --precison int8",
            "there is no option --precison",
            "resnet-opt build --help",
        ),
        ("compare old.json", "NEW is missing", "resnet-opt compare --help"),
        ("build m.onnx -o e.blob --precison int8", "--precison", "did you mean --precision?"),
    ],
)
def test_what_is_missing_or_misspelled_is_named(
    resnet_opt: Command, line: str, text: str, hint: str
) -> None:
    completed = resnet_opt(*line.split())
    assert completed.code == 2
    assert text in completed.err
    assert hint in completed.err
