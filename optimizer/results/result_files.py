"""Reading and writing result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from optimizer.artifacts import DIGEST_FIELD, json_digest, write_text_atomically
from optimizer.errors import ArtifactError
from optimizer.results.bench_result import BenchResult
from optimizer.results.latency_table_result import LatencyTable
from optimizer.results.profile_result import ProfileResult
from optimizer.results.prune_result import PruneResult
from optimizer.results.quantized_training_result import QuantizedTrainingResult
from optimizer.results.result_model import SCHEMA_VERSION
from optimizer.results.run_result import RunResult
from optimizer.results.search import SearchResult
from optimizer.results.validate_result import ValidateResult

__all__ = ["Result", "read_result", "result_text", "write_result"]

Result = (
    ValidateResult
    | BenchResult
    | SearchResult
    | RunResult
    | ProfileResult
    | LatencyTable
    | PruneResult
    | QuantizedTrainingResult
)
_KINDS: dict[str, type[BaseModel]] = {
    "validate": ValidateResult,
    "bench": BenchResult,
    "search": SearchResult,
    "run": RunResult,
    "profile": ProfileResult,
    "qat": QuantizedTrainingResult,
    "latency-table": LatencyTable,
    "prune": PruneResult,
}


def write_result(result: Result, path: Path) -> None:
    """Write a result as JSON with a digest, atomically."""
    write_text_atomically(path, result_text(result))


def result_text(result: Result) -> str:
    """The contents of a result's file: JSON with a digest of everything else in it."""
    import json

    raw: dict[str, Any] = json.loads(result.model_dump_json())
    raw[DIGEST_FIELD] = json_digest(raw)
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def read_result(path: Path) -> Result:
    """Read a result of any kind.

    Raises:
        ArtifactError: The file is missing, truncated or edited, or has another schema.
    """
    import json

    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", hint="check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path.name} is not JSON: {error}", hint="run the command again"
        ) from error
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ArtifactError(
            f"{path.name} is not a result of validate, bench, profile, search, run, train, latency-table "
            "or prune",
            hint="check the path",
        )
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path.name} has schema version {raw.get('schema_version')}, expected {SCHEMA_VERSION}",
            hint="run the command again with this version of resnet-opt",
        )
    written = raw.pop(DIGEST_FIELD, None)  # files of earlier versions have none
    if written is not None and written != json_digest(raw):
        raise ArtifactError(
            f"{path.name} was edited since it was written: its digest differs",
            hint="run the command again",
        )
    try:
        result = _KINDS[kind].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path.name} does not fit its schema at {where}: {first['msg']}",
            hint="run the command again",
        ) from error
    assert isinstance(result, Result)
    return result
