"""The exit code of a run: zero only for a pass."""

from __future__ import annotations

from typing import Any

import pytest

from optimizer.errors import AccuracyGateFailed, BuildError, Inconclusive, PrecisionAuditFailed
from optimizer.results import (
    Audit,
    BenchResult,
    Conditions,
    DatasetInfo,
    Gates,
    Hop,
    RunResult,
    ValidateResult,
)
from optimizer.verbs.run import verdict_of


def _run(**parts: Any) -> RunResult:
    return RunResult(
        created="", title="", command="", recipe={}, environment={}, stages=[], findings=[],
        seconds=0.0, **{"verdict": "fail", **parts},
    )  # fmt: skip


def _validated(verdict: str, hop: str = "pass") -> ValidateResult:
    return ValidateResult(
        created="", reference="r", dataset=DatasetInfo(name="d", n=1, sha256="", image_size=8),
        hops=[Hop(name="e", engine="e", executor="", parent="r", precision="int8", verdict=hop)],  # type: ignore[arg-type]
        finding="a loss", gates=Gates(max_drop_pp=1.0), verdict=verdict,  # type: ignore[arg-type]
    )  # fmt: skip


def _benched(verdict: str) -> BenchResult:
    return BenchResult(
        created="", device={}, headline="", engines=[], conditions=Conditions(cpu=""),
        verdict=verdict, reason="measured",  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "kind", "code"),
    [
        ({"verdict": "pass"}, None, 0),
        ({"validate_": _validated("fail", hop="fail")}, AccuracyGateFailed, 4),
        (
            {"validate_": _validated("fail", hop="fail"), "audits": {"e": "fail"}},
            AccuracyGateFailed,
            4,
        ),
        ({"validate_": _validated("fail"), "audits": {"e": "fail"}}, PrecisionAuditFailed, 7),
        ({"audits": {"e": "fail"}}, PrecisionAuditFailed, 7),
        ({"bench": _benched("fail")}, BuildError, 1),
        ({"audits": {"e": "inconclusive"}, "verdict": "inconclusive"}, Inconclusive, 6),
        ({"bench": _benched("inconclusive"), "verdict": "inconclusive"}, Inconclusive, 6),
        ({"validate_": _validated("inconclusive"), "verdict": "inconclusive"}, Inconclusive, 6),
        ({"verdict": "fail"}, Inconclusive, 6),
    ],
)
def test_only_a_pass_exits_with_zero(
    parts: dict[str, Any], kind: type[Exception] | None, code: int
) -> None:
    """In the order of `validate`: accuracy, precision, then measurements."""
    if "audits" in parts:
        audits = {
            name: Audit(
                asked="int8", computed={}, share=0.5, min_share=0.95, verdict=verdict, reason="so"
            )
            for name, verdict in parts["audits"].items()
        }
        parts = parts | {"audits": audits}
    error = verdict_of(_run(**parts))
    if kind is None:
        assert error is None
    else:
        assert type(error) is kind
        assert getattr(error, "exit_code", 1) == code
