"""Damaged and hostile files of every kind: each case is right, or one clear error.

``RESNET_OPT_FUZZ_CASES=10000`` runs more cases; `benchmarks/hostile_files.py` records their counts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hostile_files
import pytest
from hostile_cases import KINDS, make_base

from tests.sharing import Shared

CASES = int(os.environ.get("RESNET_OPT_FUZZ_CASES", "25"))


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_damaged_files_are_right_or_refused(kind: str, shared: Shared, tmp_path: Path) -> None:
    made = shared("hostile-base", lambda folder: make_base(folder / "base"))
    (tmp_path / "base").symlink_to(made / "base")
    found = hostile_files.outcomes(kind, CASES, tmp_path)
    assert len(found) == CASES
    faults = {seed: text for seed, text in found.items() if text not in {"right", "refused"}}
    assert not faults


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (0, "", "right"),
        (2, "error: no such file\nhint: check the path\n", "refused"),
        (6, "error: too few images\n", "refused"),
        (2, "", "inspect: exit code 2, ''"),
        (1, "internal error: KeyError: 'x'\n", 'inspect: exit code 1, "internal error: KeyError'),
        (1, "error: the library failed\n", "inspect: exit code 1"),
        (130, "error: interrupted\n", "inspect: exit code 130"),
    ],
)
def test_how_a_command_ends_is_classified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, text: str, outcome: str
) -> None:
    monkeypatch.setattr(hostile_files, "_run", lambda command: (code, text))
    found = hostile_files._outcome(["inspect", "x"], hostile_files.Base(tmp_path), tmp_path)
    assert found.startswith(outcome)


def test_executed_code_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hostile_files, "_run", lambda command: (2, "error: refused"))
    (tmp_path / "executed").touch()
    found = hostile_files._outcome(["predict", "x"], hostile_files.Base(tmp_path), tmp_path)
    assert found.endswith("code in the file was executed")


def test_a_graph_without_finite_logits_is_a_fault(tmp_path: Path) -> None:
    """Exit code 0 alone does not make a result right."""
    from hostile_cases import _write_data, _write_graph

    base = hostile_files.Base(tmp_path)
    _write_graph(base.graph)
    _write_data(base)
    (tmp_path / "out.onnx").write_bytes(b"not a graph")
    command = ["quantize", "x", "-o", str(tmp_path / "out.onnx")]
    assert "does not compute finite logits" in str(hostile_files._written(command, base))
    command[-1] = str(base.graph)
    assert hostile_files._written(command, base) is None


def test_the_table_counts_cases() -> None:
    row: dict[str, Any] = {"cases": 1000, "right": 400, "refused": 599, "faults": {"7": "x"}}
    text = hostile_files.block({"kinds": {"onnx": row}})
    assert "| onnx | 1,000 | 400 | 599 | 1 |" in text
