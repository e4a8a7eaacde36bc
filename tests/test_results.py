"""Results: written and read, and invalid files refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.errors import ArtifactError
from optimizer.results import DatasetInfo, Gates, ValidateResult, read_result, write_result


def _result() -> ValidateResult:
    return ValidateResult(
        created="2026-01-01T00:00:00+00:00",
        reference="m",
        dataset=DatasetInfo(name="d", n=1, sha256="0", image_size=32),
        hops=[],
        finding="nothing",
        gates=Gates(max_drop_pp=1.0),
        verdict="pass",
    )


def test_a_result_round_trips(tmp_path: Path) -> None:
    write_result(_result(), tmp_path / "v.json")
    assert read_result(tmp_path / "v.json") == _result()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 7}, "schema version 7"),
        ({"kind": "recipe"}, "not a result"),
        ({"kind": ["validate"]}, "not a result"),
        ({"verdict": "perfect"}, "verdict"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_edited_files_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    raw = {**_result().model_dump(mode="json"), **change}
    (tmp_path / "v.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=message):
        read_result(tmp_path / "v.json")


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "validate"', "null"])
def test_files_that_are_not_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ArtifactError):
        read_result(tmp_path / "v.json")
    with pytest.raises(ArtifactError, match="no such file"):
        read_result(tmp_path / "none.json")


def _written(tmp_path: Path) -> Path:
    path = tmp_path / "v.json"
    write_result(_result(), path)
    return path


def test_an_edited_value_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_text(path.read_text().replace('"finding": "nothing"', '"finding": "everything"'))
    with pytest.raises(ArtifactError, match="was edited since it was written"):
        read_result(path)


def test_another_layout_of_the_same_values_is_accepted(tmp_path: Path) -> None:
    path = _written(tmp_path)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(raw.items()))))
    assert read_result(path) == _result()


def test_a_truncated_result_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ArtifactError, match="is not JSON"):
        read_result(path)


def test_results_without_a_digest_are_read(tmp_path: Path) -> None:
    path = _written(tmp_path)
    raw = json.loads(path.read_text())
    del raw["digest"]
    path.write_text(json.dumps(raw))
    assert read_result(path) == _result()
