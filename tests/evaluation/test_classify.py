"""`predict` refuses outputs that are no probabilities, and class names that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import ArtifactError, DataError, EnvironmentFault, UsageError
from optimizer.evaluation.classify import _check_outputs
from optimizer.processes import ranks

ENGINE, IMAGE = Path("e.blob"), Path("cat.jpg")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite(value: float) -> None:
    with pytest.raises(DataError, match=r"e\.blob returns NaN or infinite values for cat\.jpg"):
        _check_outputs(np.array([1.0, value]), None, ENGINE, IMAGE)


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_another_number_of_class_names(names: list[str]) -> None:
    with pytest.raises(ArtifactError, match=f"has 2 outputs, but names {len(names)} classes"):
        _check_outputs(np.array([1.0, 2.0]), names, ENGINE, IMAGE)


def test_outputs_that_fit() -> None:
    _check_outputs(np.array([1.0, 2.0]), ["a", "b"], ENGINE, IMAGE)
    _check_outputs(np.array([1.0, 2.0]), None, ENGINE, IMAGE)


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "1" * 5000])
@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_variables_of_torchrun_that_are_no_numbers(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(UsageError, match=f"{variable} is .* not a number"):
        if variable == "WORLD_SIZE":
            with ranks.joined():
                pass
        else:
            (ranks.is_first_process if variable == "RANK" else ranks.local_device)()


def test_processes_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match="cannot join the other processes"):
        with ranks.joined():
            pass
