"""``results.json`` of a run folder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from optimizer.results.bench_result import BenchResult
from optimizer.results.engines import Audit
from optimizer.results.result_model import SCHEMA_VERSION, EngineStatus, Model, VerdictName
from optimizer.results.validate_result import ValidateResult
from optimizer.tables import Table

__all__ = ["RunResult", "StageRecord"]


class StageRecord(Model):
    """One stage of a run: its artifact, its time, and whether the artifact existed already."""

    name: str
    label: str
    file: str | None = None
    """Relative to the run folder."""
    cached: bool = False
    seconds: float
    status: EngineStatus = "ok"
    note: str | None = None
    manifest: dict[str, Any] | None = None


class RunResult(Model):
    """``results.json`` of a run folder."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run"] = "run"
    created: str
    title: str
    command: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    stages: list[StageRecord]
    validate_: ValidateResult | None = Field(default=None, alias="validate")
    bench: BenchResult | None = None
    audits: dict[str, Audit] = {}
    """Audit of each engine that was built, by file name; `validate_` repeats those it validated."""
    verdict: VerdictName
    findings: list[str]
    """The sentences at the head of the report."""
    seconds: float

    def as_table(self) -> Table:
        """The verdict and the findings."""
        rows = [("verdict", self.verdict), *(("", finding) for finding in self.findings)]
        return Table(("", ""), rows, self.title)

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, serialize_by_alias=True, ser_json_inf_nan="constants"
    )
