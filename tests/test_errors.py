"""Exceptions: exit codes, the tree in the docstring, and pickling."""

from __future__ import annotations

import pickle

import pytest

from optimizer import errors

CODES = {
    "ResnetOptError": 1,
    "BuildError": 1,
    "UsageError": 2,
    "CheckpointError": 2,
    "GraphError": 2,
    "DataError": 2,
    "ArtifactError": 2,
    "UnsupportedPrecision": 2,
    "EnvironmentFault": 3,
    "MissingLibrary": 3,
    "MissingDevice": 3,
    "AccuracyGateFailed": 4,
    "PerformanceRegression": 5,
    "Inconclusive": 6,
    "PrecisionAuditFailed": 7,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_codes(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n[0].isupper()])
def test_the_docstring_lists_every_error(name: str) -> None:
    assert errors.__doc__ is not None
    assert name in errors.__doc__
    assert issubclass(getattr(errors, name), errors.ResnetOptError)


def test_an_error_keeps_its_hint_across_processes() -> None:
    error = errors.GraphError("broken", hint="export it again")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.GraphError
    assert (copy.message, copy.hint) == ("broken", "export it again")
    assert str(copy) == "broken (export it again)"
