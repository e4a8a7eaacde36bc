from __future__ import annotations

import io

from rich.console import Console

from optimizer.reporting import render_console
from optimizer.results import RunResult

from .conftest import HOSTILE


def shown(run: RunResult, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(render_console(run))
    return stream.getvalue()


def test_every_sample_prints_its_verdict_and_title(any_run: RunResult) -> None:
    text = shown(any_run)
    assert any_run.title.splitlines()[0] in text
    assert f"Verdict: {any_run.verdict.capitalize()}" in text


def test_the_table_fits_a_wide_terminal(full_run: RunResult) -> None:
    text = shown(full_run)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    (line,) = [line for line in lines if line.startswith("OpenVINO INT8 ") and "5.84" in line]
    assert line.split()[:7] == ["OpenVINO", "INT8", "int8", "1", "92.4", "5.84", "10.8"]
    assert "images/s" in text
    assert "built, not run: needs an NVIDIA GPU" in text
    assert "f  " not in text, "footnotes of hidden columns are omitted"


def test_a_narrow_terminal_shows_the_verdict(full_run: RunResult) -> None:
    text = shown(full_run, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "Verdict: Pass" in text


def test_markup_in_names_is_printed_literally(hostile_run: RunResult) -> None:
    hostile_run.title = "[red]title[/]"
    hostile_run.findings = ["[/] closes nothing", HOSTILE]
    text = shown(hostile_run)
    assert "[red]title[/]" in text
    assert "- [/] closes nothing" in text


def test_open_questions_are_listed(inconclusive_run: RunResult) -> None:
    text = " ".join(shown(inconclusive_run).split())
    assert "Open: Accuracy: 540 images cannot decide" in text
