"""``import optimizer``: every verb of the command line, typed results, verdicts as fields."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer
from optimizer.cli.commands import PANELS
from optimizer.errors import UsageError
from optimizer.tables import Table


def test_every_command_is_a_function() -> None:
    commands = {command.__name__ for panel in PANELS.values() for command in panel}
    assert commands <= set(optimizer.__all__)
    for name in commands:
        assert callable(getattr(optimizer, name)), name


@pytest.mark.parametrize("name", ["build", "validate", "bench", "quantize", "train", "export"])
def test_help_lists_every_option(name: str) -> None:
    verb, model = getattr(optimizer, name), getattr(optimizer, f"{name.title()}Options")
    parameters = inspect.signature(verb).parameters
    for option, field in model.model_fields.items():
        assert option in parameters
        assert str(field.description) in str(verb.__doc__)


def test_results_are_typed_and_displayed_in_notebooks(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    exported = optimizer.export(small_checkpoint, tmp_path / "m.onnx")
    assert exported.max_relative_difference is not None
    assert exported.max_relative_difference < 1e-4
    assert exported.preprocessing_assumed  # the weights are random
    engine = optimizer.build(exported.path, tmp_path / "m.blob", engine="openvino")
    assert engine.audit.verdict == "pass"
    assert engine.search is None
    assert engine.manifest.settings["backend"] == "openvino"
    assert "<td>pass</td>" in engine._repr_html_()
    assert optimizer.audit(engine.path) == engine.audit

    output = tmp_path / "v.json"
    result = optimizer.validate(
        engine.path, reference=small_checkpoint, data="digits:test", limit=40, max_drop="50pp",
        output=output,
    )  # fmt: skip
    assert result.verdict == "pass"
    assert output.is_file()
    assert (tmp_path / "v.predictions.npz").is_file()
    assert result.finding.split()[0] in result._repr_html_()
    assert optimizer.compare(output, output, max_drop="50pp").verdict == "pass"

    strict = optimizer.validate(
        engine.path, reference=small_checkpoint, data="digits:test", limit=40, max_drop="0.1pp"
    )
    assert strict.verdict == "inconclusive"  # a field, not an exception
    with pytest.raises(optimizer.errors.Inconclusive):
        optimizer.raise_for_verdict(strict)


def test_cells_are_escaped() -> None:
    html = Table(("a", ""), [("<script>", "&")], "x<y").to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_an_invalid_call_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing a required argument: 'output'"):
        optimizer.export("resnet18:random")
    with pytest.raises(UsageError, match="batch_sizes: no such option"):
        optimizer.bench("m.blob", batch_sizes=[1])


@pytest.mark.parametrize(("statement", "limit_s"), [("import optimizer", 0.3)])
def test_import_loads_few_modules(statement: str, limit_s: float) -> None:
    """Counts modules, not seconds, so that a busy machine does not fail the test."""
    del limit_s
    code = (
        f"import sys; before = set(sys.modules); {statement}; print(len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40
