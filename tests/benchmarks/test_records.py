"""Results that benchmarks refuse to record."""

from __future__ import annotations

from typing import Any

import layers
import pytest
import rtx

from optimizer.results import Ceiling, Ceilings, ProfileResult


def builds(**changes: Any) -> dict[str, Any]:
    rows = [
        {"precision": "fp16", "targets": ["sm86"], "engine_bytes": 5.1e7, "verdict": "pass"},
        {"precision": "fp8", "targets": ["sm86"], "refused": "FP8 needs sm89"},
        {"precision": "int8", "targets": ["sm75"], "engine_bytes": 3.6e7, "verdict": "fail"},
    ]
    leak = {"builds": 13, "rss_bytes": 0, "open_files": 0, "children": 0, "left_behind": []}
    rows[0] |= {k: v for k, v in changes.items() if k in rows[0]}
    return {"builds": rows, "leak": leak | {k: v for k, v in changes.items() if k in leak}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_bytes": 5.3e7}, "fp16 for sm86 has"),
        ({"verdict": "fail"}, "the audit verdict is fail, not pass"),
        ({"builds": 3}, "only 3 builds"),
        ({"open_files": 1}, "leaks"),
        ({"rss_bytes": 60 << 20}, "leaks"),
        ({"left_behind": [".m.rtx.1"]}, "left behind: .m.rtx.1"),
    ],
)
def test_oversized_and_leaking_builds_are_refused(changes: dict[str, Any], message: str) -> None:
    assert rtx.violated_limits(builds()) == []
    (violation,) = rtx.violated_limits(builds(**changes))
    assert message in violation


def profile(fp32: float, int8: float) -> ProfileResult:
    def reached(rate: float) -> Ceiling:
        return Ceiling(rate=rate, median=rate, rounds=1, how="")

    return ProfileResult(
        created="",
        device={},
        settings={},
        engines=[],
        headline="",
        ceilings=Ceilings(
            created="", device={}, threads=2, libraries={},
            compute={"fp32": reached(fp32), "int8": reached(int8)},
            memory=reached(1e9), cache=reached(1e9),
        ),
    )  # fmt: skip


def test_implausible_ceilings_are_refused() -> None:
    layers.check(profile(1e11, 3e11))
    with pytest.raises(SystemExit, match="INT8 products at 4e\\+09"):
        layers.check(profile(1e11, 4e9))
    with pytest.raises(SystemExit, match="FP32 products at 1e\\+14"):
        layers.check(profile(1e14, 3e14))
