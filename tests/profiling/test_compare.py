"""Comparison of two results."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import UsageError
from optimizer.profiling.speed_comparison import compare_bench
from optimizer.results import (
    BenchResult,
    Comparison,
    Conditions,
    Curve,
    CurvePoint,
    EngineBench,
    Setting,
)


def engine(name: str = "a", *, ms: float = 10.0, noise: float = 0.002, **fields) -> EngineBench:
    generator = np.random.default_rng(crc32(f"{name} {ms}".encode()))  # hash() differs by run
    rounds = (ms * np.exp(generator.normal(0, noise, 30))).tolist()
    values = {
        "name": name,
        "file": name,
        "backend": "tiny",
        "status": "ok",
        "precision": "int8",
        "batch": 1,
        "image_size": 224,
        "threads": 2,
        "round_medians_ms": rounds,
    }
    return EngineBench(**{**values, **fields})


def result(*engines: EngineBench, device: str = "this", control: float = 1.0) -> BenchResult:
    a_a = Comparison(
        a="a", b="a (again)", batch=1, ratio=control, ci95=(control * 0.99, control * 1.01),
        min_effect=0.02, verdict="equivalent",
    )  # fmt: skip
    return BenchResult(
        created="2026-01-01",
        device={"cpu": device, "sha256": device},
        headline="compute",
        engines=list(engines),
        a_a_control=a_a,
        conditions=Conditions(cpu=device),
        verdict="pass",
        reason="",
    )


@pytest.mark.parametrize(
    ("ms", "verdict"),
    [(10.0, "pass"), (8.0, "pass"), (10.1, "pass"), (10.3, "inconclusive"), (10.6, "fail")],
)
def test_the_gate(ms: float, verdict: str) -> None:
    comparison = compare_bench(result(engine()), result(engine(ms=ms)), max_slowdown=0.03)
    assert comparison.verdict == verdict
    (pair,) = comparison.pairs
    assert pair.slowdown == pytest.approx(ms / 10 - 1, abs=0.003)
    assert pair.ci95[0] <= pair.slowdown <= pair.ci95[1]
    assert any("side by side" in note for note in comparison.notes)
    assert "a at batch 1" in comparison.reason or verdict == "pass"


def test_a_noisy_slowdown_is_inconclusive() -> None:
    old, new = engine(noise=0.15), engine(ms=10.5, noise=0.15)
    assert compare_bench(result(old), result(new)).verdict == "inconclusive"


def test_the_controls_difference_widens_the_interval() -> None:
    old, new = engine(), engine(ms=10.6)
    assert compare_bench(result(old), result(new)).verdict == "fail"
    steady = compare_bench(result(old), result(new)).pairs[0].ci95
    shaky = compare_bench(result(old, control=0.95), result(new)).pairs[0].ci95
    assert shaky[0] < steady[0]
    assert shaky[1] > steady[1]
    assert compare_bench(result(old, control=0.95), result(new)).verdict == "inconclusive"


@settings(max_examples=20, deadline=None)
@given(st.floats(1.0, 100.0), st.floats(0.5, 2.0))
def test_a_result_against_itself_never_fails(ms: float, control: float) -> None:
    same = result(engine(ms=ms), control=control)
    comparison = compare_bench(same, same)
    assert comparison.verdict != "fail"
    assert comparison.pairs[0].slowdown == 0.0


def test_other_machines_are_refused_unless_anyway() -> None:
    old, new = result(engine()), result(engine(), device="another")
    with pytest.raises(UsageError, match=r"different machines .*this and another"):
        compare_bench(old, new)
    comparison = compare_bench(old, new, anyway=True)
    assert comparison.verdict == "pass"
    assert any("different machines" in note for note in comparison.notes)


def test_results_without_a_fingerprint_are_refused() -> None:
    bare = result(engine()).model_copy(update={"device": {}})
    with pytest.raises(UsageError, match="fingerprints differ"):
        compare_bench(bare, bare)


@pytest.mark.parametrize("field", ["threads", "image_size", "streams"])
def test_other_settings_are_refused_unless_anyway(field: str) -> None:
    old, new = result(engine()), result(engine(**{field: 7}))
    with pytest.raises(UsageError, match=field.replace("_", " ")):
        compare_bench(old, new)
    assert any("different settings" in n for n in compare_bench(old, new, anyway=True).notes)


def test_engines_are_paired_by_name_or_else_by_properties() -> None:
    old = result(engine("model-v1", batch=1), engine("b", batch=8), engine("b", batch=1))
    new = result(engine("b", batch=1), engine("b", batch=8), engine("model-v2", batch=1))
    comparison = compare_bench(old, new)
    assert {(p.old, p.new, p.batch) for p in comparison.pairs} == {
        ("model-v1", "model-v2", 1), ("b", "b", 8), ("b", "b", 1),
    }  # fmt: skip
    assert comparison.missing == []
    assert comparison.added == []


def test_ambiguous_engines_are_not_paired() -> None:
    old = result(engine("x"))
    comparison = compare_bench(old, result(engine("y"), engine("z")))
    assert comparison.pairs == []
    assert comparison.missing == ["x at batch 1"]
    assert comparison.added == ["y at batch 1", "z at batch 1"]
    assert comparison.verdict == "inconclusive"


def test_a_missing_or_failed_engine_does_not_pass() -> None:
    old = result(engine("a"), engine("b", precision="fp32"))
    assert compare_bench(old, result(engine("a"))).verdict == "inconclusive"
    broken = engine("b", precision="fp32", status="failed", error="crashed", round_medians_ms=[])
    comparison = compare_bench(old, result(engine("a"), broken))
    assert comparison.verdict == "inconclusive"
    assert "crashed" in comparison.reason


@pytest.mark.parametrize("limit", [-0.1, float("nan"), 30.0])
def test_an_invalid_limit_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match="max_slowdown must be a fraction"):
        compare_bench(result(engine()), result(engine()), max_slowdown=limit)


@pytest.mark.parametrize("medians", [[], [1.0] * 5, [1.0] * 9 + [0.0], [1.0] * 9 + [float("nan")]])
def test_results_edited_by_hand_are_refused(medians: list) -> None:
    with pytest.raises(UsageError, match="fewer than 6 rounds, or invalid ones"):
        compare_bench(result(engine()), result(engine(round_medians_ms=medians)))


def test_an_old_result_without_any_measured_engine() -> None:
    dead = result(engine(status="failed", round_medians_ms=[]))
    with pytest.raises(UsageError, match="no measured engine"):
        compare_bench(dead, result(engine()))


def curve(rates: dict[tuple[int, int, int], float | str], name: str = "a") -> Curve:
    """Points by batch, threads and streams; a string is an error message."""
    points = []
    for key, rate in rates.items():
        setting = Setting(batch=key[0], threads=key[1], streams=key[2])
        if isinstance(rate, str):
            points.append(CurvePoint(setting=setting, status="failed", error=rate))
            continue
        noise = np.random.default_rng(sum(key)).normal(0, 0.002, 30)
        rounds = (rate * np.exp(noise)).tolist()
        points.append(CurvePoint(setting=setting, status="ok", round_images_per_s=rounds))
    return Curve(engine=name, points=points)


def swept(rates: dict[tuple[int, int, int], float | str], *engines: EngineBench) -> BenchResult:
    named = engines or (engine(),)
    return result(*named).model_copy(update={"curves": [curve(rates, named[0].name)]})


def test_settings_of_a_sweep_are_compared_by_throughput() -> None:
    old = swept({(1, 2, 1): 100.0, (1, 2, 2): 100.0, (4, 1, 2): 50.0})
    comparison = compare_bench(old, swept({(1, 2, 1): 1.0, (1, 2, 2): 99.0, (4, 1, 2): 45.0}))
    assert comparison.verdict == "fail"
    assert "a at batch 4, 1 thread, 2 streams is +11.1% slower" in comparison.reason
    settings = [(p.batch, p.threads, p.streams) for p in comparison.pairs]
    # The engine's own setting is compared only once, by latency.
    assert settings == [(1, None, None), (1, 2, 2), (4, 1, 2)]
    assert comparison.pairs[1].verdict == "pass"
    assert comparison.pairs[1].slowdown == pytest.approx(0.01, abs=0.003)


def test_a_renamed_engine_keeps_its_sweep() -> None:
    old = swept({(1, 2, 4): 100.0}, engine("model-v1"))
    new = swept({(1, 2, 4): 80.0}, engine("model-v2"))
    comparison = compare_bench(old, new)
    assert [(p.old, p.new, p.verdict) for p in comparison.pairs] == [
        ("model-v1", "model-v2", "pass"), ("model-v1", "model-v2", "fail"),
    ]  # fmt: skip


@pytest.mark.parametrize("new", [{}, {(1, 2, 4): "crashed"}])
def test_a_missing_or_failed_setting_does_not_pass(new: dict) -> None:
    comparison = compare_bench(swept({(1, 2, 4): 100.0}), swept(new))
    assert comparison.verdict == "inconclusive"
    assert "a at batch 1, 2 threads, 4 streams" in comparison.reason


def test_a_setting_that_failed_before_is_not_required() -> None:
    assert compare_bench(swept({(1, 2, 4): "crashed"}), swept({})).verdict == "pass"


def test_sweeps_without_rounds_are_refused() -> None:
    old, new = swept({(1, 2, 4): 100.0}), swept({(1, 2, 4): 100.0})
    new.curves[0].points[0].round_images_per_s = []
    with pytest.raises(UsageError, match="fewer than 6 rounds, or invalid ones"):
        compare_bench(old, new)
