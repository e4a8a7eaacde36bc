"""The README: commands that parse, files that exist, figures that were measured."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("accuracy", "architecture", "int8", "measuring", "tensorrt")),
]


def _commands() -> list[str]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                command = line.removeprefix("$ ").split("  #")[0].strip()
                if command.startswith("resnet-opt ") and "…" not in command:
                    found.append(command)
    return found


@pytest.mark.parametrize("command", _commands())
def test_commands_parse(command: str) -> None:
    import typer.main

    from optimizer.cli.app import app

    group = typer.main.get_command(app)
    _, name, *arguments = shlex.split(command)
    assert name in group.commands, command  # type: ignore[attr-defined]
    group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_there_are_commands() -> None:
    assert len(_commands()) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("given", ["as a file", "as standard input"])
def test_the_example_in_python_runs(given: str, tmp_path: Path, small_checkpoint: Path) -> None:
    """As it is printed, beside a checkpoint, without a guard."""
    from optimizer.models import load_model, save_checkpoint

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import .*?)```", text, re.DOTALL)
    model = load_model(str(small_checkpoint))
    save_checkpoint(model, tmp_path / "model.safetensors", details={})
    script = tmp_path / "example.py"
    script.write_text(example + "print(logits.shape)\n")
    as_file = given == "as a file"
    with script.open() as opened:
        done = subprocess.run(
            [sys.executable, "example.py" if as_file else "-"],
            stdin=subprocess.DEVNULL if as_file else opened,
            capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict, *_, shape = done.stdout.splitlines()
    assert verdict.split()[0] in {"pass", "inconclusive", "fail"}
    assert shape == "(1, 10)"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_verb_is_in_the_readme() -> None:
    import typer.main

    from optimizer.cli.app import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"\b{name}\b", text), name


def test_the_demo_in_the_readme_is_the_report() -> None:
    """The output shown is the one whose report lies in the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- demo -->")[1].split("<!-- /demo -->")[0]
    results = json.loads((ROOT / "reports/demo/results.json").read_text(encoding="utf-8"))
    assert results["title"] in shown
    words = " ".join(shown.split())
    for finding in results["findings"]:
        assert " ".join(finding.split()) in words, finding


def test_the_figures_at_224_px_are_those_of_the_report() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- cpu -->")[1].split("<!-- /cpu -->")[0]
    engines = json.loads((ROOT / "reports/cpu/bench.json").read_text(encoding="utf-8"))["engines"]
    measured = [engine for engine in engines if engine["batch"] == 1]
    assert len(shown.strip().splitlines()) == len(measured) + 2
    for engine in measured:
        assert f"| {engine['images_per_s']:.1f} |" in shown, engine["name"]


def test_the_quantizers_table_is_that_of_the_report() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- quantizers -->")[1].split("<!-- /quantizers -->")[0]
    rows = json.loads((ROOT / "reports/quantizers/quantizers.json").read_text(encoding="utf-8"))
    known = {row["name"]: row for row in rows["rows"] if row["status"] == "ok"}
    lines = [line.split(" | ") for line in shown.strip().splitlines()[2:]]
    assert len(lines) >= 12
    for name, db, flips, _ in lines:
        row = known[name.removeprefix("| ")]
        assert (db, flips) == (f"{row['sqnr_db']:.1f}", str(row["flips"]))


def test_builds_by_tensorrt_rtx_are_those_of_the_report() -> None:
    """The table in docs/tensorrt.md, row by row, from what was measured."""
    text = (ROOT / "docs/tensorrt.md").read_text(encoding="utf-8")
    block = text.split("<!-- rtx -->")[1].split("<!-- /rtx -->")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in block.splitlines()
        if line.startswith("| ")
    ][1:]
    builds = json.loads((ROOT / "reports/tensorrt/rtx.json").read_text(encoding="utf-8"))["builds"]
    assert len(rows) == len(builds) > 12
    for row, build in zip(rows, builds, strict=True):
        assert row[:2] == [build["precision"].upper(), " + ".join(build["targets"])]
        if "refused" in build:
            assert row[2] == f"refused: {build['refused']}"
            continue
        assert row[2] == f"{build['engine_bytes'] / 1e6:.1f} MB"
        assert row[3] == str(build["layers"])
        main, share = max(build["computed"].items(), key=lambda item: item[1])
        assert row[4].startswith(f"{main.upper()} {100 * share:.4g} %")
        assert row[5] == build["verdict"]
        assert row[6:8] == [f"{build['library_s']:.1f} s", f"{build['own_s']:.1f} s"]
        assert row[8] == f"{build['peak_bytes'] / 2**20:.0f} MiB"


def test_ahead_of_time_builds_are_small_and_leak_nothing() -> None:
    """What does not depend on how busy a machine is."""
    report = json.loads((ROOT / "reports/tensorrt/rtx.json").read_text(encoding="utf-8"))
    largest = {"fp16": 52e6, "int8": 37e6}
    for build in report["builds"]:
        if "refused" not in build:
            assert build["engine_bytes"] <= largest.get(build["precision"], 104e6)
            assert build["verdict"] == ("fail" if build["targets"] == ["sm75"] else "pass")
    leak = report["leak"]
    assert leak["builds"] >= 12
    assert leak["open_files"] <= 0
    assert leak["children"] <= 0
    assert leak["left_behind"] == []
    assert leak["rss_bytes"] < 50 * 2**20
