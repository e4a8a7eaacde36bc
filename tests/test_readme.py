"""The README and docs: commands parse, links resolve, figures match the recorded results."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import optimizer
from optimizer.results import BenchResult, read_result

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
]


def _commands() -> list[str]:
    commands = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                command = line.removeprefix("$ ").split("  #")[0].strip()
                if command.startswith("resnet-opt ") and "…" not in command:
                    commands.append(command)
    return commands


def _functions() -> dict[str, Callable[..., None]]:
    from optimizer.cli.commands import PANELS

    return {function.__name__: function for panel in PANELS.values() for function in panel}


@pytest.mark.parametrize("command", _commands())
def test_commands_parse(command: str) -> None:
    from optimizer.cli.app import app

    _, *tokens = shlex.split(command)
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    model = get_type_hints(_functions()[tokens[0].replace("-", "_")]).get("options")
    if model is not None:  # values are checked by the model, not by the parser
        model.of(None, {k: v for k, v in bound.arguments.items() if k in model.model_fields})


def test_there_are_commands() -> None:
    assert len(_commands()) >= 8


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_verb_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in {*_functions(), *optimizer.__all__}:
        if name.islower() and name.isidentifier() and not name.startswith("_"):
            assert re.search(rf"\b{name}\b", text), name


def _recorded(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((ROOT / "reports" / name).read_text(encoding="utf-8"))
    return report


def _cpu() -> str:
    import cpu

    result = read_result(ROOT / "reports/cpu/bench.json")
    assert isinstance(result, BenchResult)
    return "\n".join(cpu.rows(result, [1]))


def _quantizers() -> str:
    import quantizers

    return quantizers._short_table(_recorded("quantizers/quantizers.json"))


def _rtx() -> str:
    import rtx

    return rtx.block(_recorded("tensorrt/rtx.json"))


def _keras() -> str:
    import keras_logits

    return keras_logits.block(_recorded("keras/logits.json"))


def _false_alarms() -> str:
    import false_alarms

    return false_alarms.text(_recorded("cpu/false_alarms.json"))


def _images() -> str:
    import statistics_simulation

    return statistics_simulation.table(_recorded("statistics/simulation.json"))


def _extras() -> str:
    import extras

    return extras.block(_recorded("extras/extras.json"))


@pytest.mark.parametrize(
    ("page", "mark", "written"),
    [
        ("README.md", "extras", _extras),
        ("README.md", "cpu", _cpu),
        ("README.md", "quantizers", _quantizers),
        ("docs/tensorrt.md", "rtx", _rtx),
        ("docs/measuring.md", "false-alarms", _false_alarms),
        ("docs/sources.md", "keras", _keras),
        ("docs/accuracy.md", "images", _images),
    ],
)
def test_figures_match_the_recorded_results(
    page: str, mark: str, written: Callable[[], str]
) -> None:
    """Figures come from recorded results; whether they are acceptable is checked on recording."""
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = text.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0]
    assert shown.strip() == written().strip()


def test_the_demo_output_in_the_readme_matches_the_report() -> None:
    """The output shown belongs to the report in the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- demo -->")[1].split("<!-- /demo -->")[0]
    results = _recorded("demo/results.json")
    assert results["title"] in shown
    words = " ".join(shown.split())
    for finding in results["findings"]:
        assert " ".join(finding.split()) in words, finding
