from __future__ import annotations

import re
from pathlib import Path

from optimizer.reporting import render_markdown
from optimizer.results import RunResult

from .conftest import HOSTILE


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every pipe table; escaped pipes are not separators."""
    parsed: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        lines = block.strip().splitlines()
        parsed.append([[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines])
    return parsed


def test_every_table_is_rectangular(any_run: RunResult) -> None:
    for table in tables(render_markdown(any_run)):
        assert len({len(row) for row in table}) == 1
        assert all(re.fullmatch(r"-{3}:?", cell) for cell in table[1])


def test_the_essentials_are_there(full_run: RunResult) -> None:
    text = render_markdown(full_run)
    assert text.startswith("# ResNet-50 on digits")
    assert "**Verdict: Pass.**" in text
    engines = tables(text)[0]
    assert [cell.split(" (")[0] for cell in engines[0]][:5] == [
        "Engine",
        "Precision",
        "Batch, images",
        "Throughput, images/s",
        "Speed-up, ×",
    ]
    (row,) = [r for r in engines if "OpenVINO INT8" in r[0]]
    assert row[3] == r"[92.4](samples/model.int8.openvino.blob.b1.npz) \[91.8, 92.9\]"
    assert row[4] == r"5.84 \[5.77, 5.90\]"
    assert row[8] == r"+0.37 \[−0.62, +1.48\]"
    assert row[-1] == "pass accuracy, precision, batch consistency"
    assert "TensorRT-RTX FP16: built, not run: needs an NVIDIA GPU" in text
    assert "Too few samples for p99" in text
    assert f"```sh\n{full_run.command}\n```" in text


def test_units_and_notes(single_run: RunResult) -> None:
    text = render_markdown(single_run)
    assert "This run has no validation" in text
    assert re.search(r"–<sup>[a-z]</sup>", text)
    for mark in set(re.findall(r"–<sup>([a-z]+)</sup>", text)):
        assert f"- <sup>{mark}</sup> " in text


def test_markdown_and_html_in_names_are_escaped(hostile_run: RunResult) -> None:
    hostile_run.findings = ["[link](javascript:x) **bold** `code` ![i](x)\n# heading", HOSTILE]
    text = render_markdown(hostile_run)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "<script" not in prose
    assert r"\[link\](javascript:x) \*\*bold\*\* \`code\` !\[i\](x) \# heading" in prose
    assert not re.search(r"(?<!\\)\]\((javascript|data|https?):", prose)
    for table in tables(text):
        assert len({len(row) for row in table}) == 1


def test_a_fence_is_longer_than_any_in_the_command(full_run: RunResult) -> None:
    full_run.command = "echo ```` <script>"
    assert "`````sh\necho ```` <script>\n`````" in render_markdown(full_run)


def test_links_start_at_the_folder(full_run: RunResult) -> None:
    text = render_markdown(full_run, Path("runs/a(1)"))
    assert "[results.json](runs/a%281%29/results.json)" in text


def test_the_first_failing_hop_is_named(failing_run: RunResult) -> None:
    assert "**first failing** └ ONNX INT8 (u8)" in render_markdown(failing_run).replace(
        "&nbsp;", ""
    )
