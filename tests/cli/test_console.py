from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from optimizer.cli.console import Bars, Lines, _duration, print_error, print_note, progress, say
from optimizer.errors import DataError, ResnetOptError, UsageError


def plain() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=60, highlight=False), stream


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    target = Console(
        file=stream, width=120, force_terminal=True, color_system=None, _environ={"TERM": "xterm"}
    )
    return target, stream


def test_an_error_is_one_line_and_its_hint_another() -> None:
    shown, stream = plain()
    error = UsageError(
        "no such file: " + "a/very/long/path/" * 8 + "x.onnx", hint="check\nthe path"
    )
    print_error(error, shown)
    lines = stream.getvalue().splitlines()
    assert lines == ["error: " + error.message, "hint: check the path"]


def test_an_error_without_a_hint_is_one_line() -> None:
    shown, stream = plain()
    print_error(ResnetOptError("two\n  lines"), shown)
    assert stream.getvalue() == "error: two lines\n"


def test_markup_in_names_is_printed_as_it_is() -> None:
    shown, stream = plain()
    print_error(UsageError("[red]model[/red].onnx is damaged"), shown)
    print_note("[/] is no tag", shown)
    assert stream.getvalue() == "error: [red]model[/red].onnx is damaged\nnote: [/] is no tag\n"


def test_without_a_terminal_a_step_is_one_line() -> None:
    shown, stream = plain()
    with progress(shown) as steps:
        assert isinstance(steps, Lines)
        steps.start("export", total=10)
        for _ in range(10):
            steps.advance(note="layer")
        assert stream.getvalue() == ""
        steps.finish("174 nodes")
    assert re.fullmatch(r"export \.\.\. done in \d+\.\d s: 174 nodes\n", stream.getvalue())


def test_inner_steps_are_indented_below_their_outer_step() -> None:
    shown, stream = plain()
    with progress(shown) as steps:
        steps.start("build")
        steps.start("compile [fp16]")
        steps.finish()
        steps.finish()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("  compile [fp16] ... done in ")
    assert second.startswith("build ... done in ")


def test_an_exception_reports_the_open_step_and_propagates() -> None:
    shown, stream = plain()
    with pytest.raises(UsageError):
        _interrupted(shown, UsageError("no images"))
    line = r"calibrate \.\.\. not finished after \d+\.\d s: at 3 of 256\n"
    assert re.fullmatch(line, stream.getvalue())


def _interrupted(shown: Console, error: BaseException) -> None:
    with progress(shown) as steps:
        steps.start("calibrate", total=256)
        steps.advance(3)
        raise error


@pytest.mark.parametrize("call", ["advance", "finish"])
def test_ending_a_step_that_was_not_started_raises(call: str) -> None:
    with Lines(plain()[0]) as steps, pytest.raises(RuntimeError, match="without start"):
        getattr(steps, call)()


def test_in_a_terminal_bars_become_lines() -> None:
    shown, stream = terminal()
    with progress(shown) as steps:
        assert isinstance(steps, Bars)
        steps.start("[b]validate[/b]", total=4)
        steps.advance(2, note="batch 2")
        steps._bars.refresh()
        assert "2/4" in stream.getvalue()
        assert "batch 2" in stream.getvalue()
        steps.finish("540 images")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"\[b\]validate\[/b\] \.\.\. done in \d+\.\d s: 540 images", text)


def test_bars_are_removed_after_an_exception() -> None:
    shown, stream = terminal()
    with pytest.raises(KeyboardInterrupt):
        _interrupted(shown, KeyboardInterrupt())
    assert stream.getvalue().count("\x1b[?25l") == 1, "the cursor is hidden while bars are drawn"
    after = stream.getvalue().rpartition("\x1b[?25h")[2]
    assert "calibrate ... not finished after" in after, "printed once the cursor is back"
    assert "━" not in after, "no bar is drawn over it"


SCRIPT = """
from optimizer.cli.console import progress
with progress() as steps:
    steps.start("export", total=2)
    steps.advance()
    steps.advance()
    steps.finish()
print("{}")
"""


def test_in_a_pipe_stdout_holds_only_the_result_and_stderr_is_plain_text() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert run.stdout == "{}\n"
    assert re.fullmatch(r"export \.\.\. done in \d+\.\d s\n", run.stderr)


def test_in_a_real_terminal_bars_are_drawn_on_stderr() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=slave, env=environment,
        text=True, check=True,
    )  # fmt: skip
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert run.stdout == "{}\n"
    assert "\x1b[?25l" in shown, "the cursor is hidden while bars are drawn"
    assert "export" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (252.4, "4 min 12 s"), (7500, "2 h 05 min"), (119.7, "2 min 00 s")],
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_control_characters_of_files_reach_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("class \x1b[31mred\x1b[0m\u202egpj\ttab\n  \x07next")
    print_error(DataError("cannot read \x1b]0;title\x07.jpg", hint="\x9b2J"))
    captured = capsys.readouterr()
    assert captured.out == "class \\x1b[31mred\\x1b[0m\\u202egpj\ttab\n  \\x07next\n"
    assert "\\x1b]0;title\\x07.jpg" in captured.err
    assert not {"\x1b", "\x07", "\x9b"} & set(captured.out + captured.err)
