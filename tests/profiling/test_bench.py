"""The whole benchmark on engines of known speed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.artifacts import Plan, produce
from optimizer.environment import fingerprint
from optimizer.errors import ArtifactError, EnvironmentFault, UsageError
from optimizer.profiling import grouping
from optimizer.profiling.benchmark import bench
from optimizer.profiling.engine_facts import describe_engines
from optimizer.profiling.grouping import split_into_groups
from optimizer.profiling.harness import MIN_ROUNDS, Cell
from optimizer.results import BenchResult, read_result, write_result
from tests.profiling.conftest import MakeEngine


@pytest.fixture
def result(make_engine: MakeEngine, tmp_path: Path) -> BenchResult:
    """Two engines whose calls last 0.4 ms and 0.2 ms."""
    slow = make_engine("slow", busy_ms=0.4, upload_ms=0.1)
    fast = make_engine("fast", busy_ms=0.2)
    return bench([slow, fast], batch=[2], duration="0.3s", threads=1, raw_dir=tmp_path / "raw")


def test_a_known_difference_is_measured(result: BenchResult, tmp_path: Path) -> None:
    slow, fast = result.engines
    assert (slow.name, slow.backend, slow.precision) == ("slow.tiny", "tiny", "fp32")
    assert [e.status for e in result.engines] == ["ok", "ok"]
    assert slow.latency_ms is not None
    assert fast.latency_ms is not None
    assert slow.latency_ms.p50 == pytest.approx(0.4)
    assert fast.latency_ms.p50 == pytest.approx(0.2)
    (comparison,) = result.comparisons
    assert (comparison.a, comparison.b, comparison.batch) == ("slow.tiny", "fast.tiny", 2)
    assert comparison.ratio == pytest.approx(2.0)
    assert comparison.ci95 == pytest.approx((2.0, 2.0)), "all calls take the same time"
    assert comparison.verdict == "faster"
    assert result.a_a_control is not None
    assert result.a_a_control.ratio == pytest.approx(1.0)
    assert result.a_a_control.b == "slow.tiny (again)"

    # Every figure can be recomputed from the raw samples, which are complete.
    for engine in result.engines:
        assert engine.raw_file is not None
        with np.load(tmp_path / engine.raw_file) as raw:
            kept = ~raw["lead_in"]
            compute = raw["compute_ns"][kept] / 1e6
            assert engine.samples == len(compute)
            assert engine.rounds == len(np.unique(raw["round"])) >= MIN_ROUNDS
            assert engine.latency_ms.p50 == pytest.approx(np.median(compute))
            assert engine.latency_ms.mean == pytest.approx(np.mean(compute))
            assert engine.batches_per_s == pytest.approx(1e3 / np.mean(compute))
            assert engine.images_per_s == pytest.approx(2e3 / np.mean(compute))
            medians = [np.median(compute[raw["round"][kept] == r]) for r in np.unique(raw["round"])]
            assert engine.round_medians_ms == pytest.approx(medians)
            assert (engine.latency_ms.p90 is None) == (len(compute) < 29)
            assert (engine.latency_ms.p95 is None) == (len(compute) < 59)
            assert np.all(np.diff(np.sort(raw["start_ns"])) > 0)
    assert len(list((tmp_path / "raw").glob("*.npz"))) == 3, "including the control's"

    assert slow.spans_ms["host_to_device"] == pytest.approx(0.1)
    assert slow.spans_ms["end_to_end"] == pytest.approx(0.5)
    assert fast.spans_ms["host_to_device"] == 0
    assert set(slow.spans_ms) == {"host_to_device", "compute", "device_to_host", "end_to_end"}
    assert slow.build_s == 0.25
    assert slow.first_inference_ms == pytest.approx(0.5)
    assert slow.load_s is not None
    assert slow.start_s is not None
    assert slow.start_s > 0
    assert slow.peak_rss_bytes is not None
    assert slow.peak_rss_bytes > 1 << 20
    assert slow.image_size == 8
    assert slow.gpu_memory_bytes is None
    assert "compute" in result.headline
    assert result.device == fingerprint()

    path = tmp_path / "bench.json"
    write_result(result, path)
    assert read_result(path) == result


def test_an_explicit_baseline_gates_the_run(make_engine: MakeEngine) -> None:
    old, new = make_engine("old", busy_ms=0.2), make_engine("new", busy_ms=0.4)
    result = bench([new], against=old, duration="0.2s", threads=1)
    assert [(c.a, c.b) for c in result.comparisons] == [("old.tiny", "new.tiny")]
    assert result.comparisons[0].ratio == pytest.approx(0.5)
    assert result.verdict == "fail"
    assert "new.tiny runs at 0.5" in result.reason


def test_a_gate_without_a_comparison_is_inconclusive(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    """If the baseline cannot run here, the candidate has no verdict."""
    new = make_engine("new", busy_ms=0.2)
    plan = Plan(kind="engine", settings={"backend": "tensorrt", "precision": "fp16"}, libraries={})
    old = produce(plan, tmp_path / "old.plan", lambda p: p.write_bytes(b"engine") and {}).path
    result = bench([new], against=old, duration="0.2s", threads=1, image_size=8)
    assert result.verdict == "inconclusive"
    assert result.reason.startswith("not compared with the baseline: old.plan at batch 1 (the bas")
    assert result.failed == []


def test_every_engine_is_measured_at_every_batch(make_engine: MakeEngine) -> None:
    a, b = (make_engine(name, busy_ms=0.5, wanders=0.1) for name in "ab")
    result = bench([a, b], batch=[1, 3], duration="0.1s", threads=1, control=False)
    assert [(e.name, e.batch) for e in result.engines] == [
        ("a.tiny", 1), ("b.tiny", 1), ("a.tiny", 3), ("b.tiny", 3),
    ]  # fmt: skip
    assert [(c.b, c.batch) for c in result.comparisons] == [("b.tiny", 1), ("b.tiny", 3)]
    assert result.a_a_control is None
    three = result.engines[3]
    assert three.images_per_s == pytest.approx(3 * three.batches_per_s)
    assert three.images_per_s_ci95[0] <= three.images_per_s <= three.images_per_s_ci95[1]


def test_a_failed_engine_fails_the_run_and_keeps_the_others(make_engine: MakeEngine) -> None:
    bad, good = make_engine("bad", nan=True), make_engine("good", busy_ms=0.5)
    result = bench([good, bad], duration="0.1s", threads=1, control=False)
    kept, failed = result.engines
    assert kept.latency_ms is not None
    assert failed.status == "failed"
    assert failed.latency_ms is None
    assert failed.images_per_s is None
    assert "NaN" in str(failed.error)
    assert result.comparisons == []
    assert result.verdict == "fail"
    assert "bad.tiny at batch 1: returned NaN" in result.reason


def test_an_engine_that_cannot_run_here_is_no_failure(make_engine: MakeEngine) -> None:
    gpu, cpu = make_engine("gpu", needs_device=True), make_engine("cpu", busy_ms=0.5)
    result = bench([cpu, gpu], duration="0.1s", threads=1, control=False)
    assert [e.status for e in result.engines] == ["ok", "built-not-run"]
    assert result.verdict == "pass"
    with pytest.raises(EnvironmentFault, match="no engine can run here: no such accelerator"):
        bench([gpu], duration="0.1s", threads=1, control=False)


def test_an_unsteady_machine_is_inconclusive(make_engine: MakeEngine) -> None:
    """The engine's own speed varies by far more than 10 %."""
    wild = make_engine("wild", busy_ms=0.5, wanders=2.0)
    result = bench([wild], duration="0.3s", threads=1)
    assert result.a_a_control is not None
    low, high = result.a_a_control.ci95
    assert max(high, 1 / low) > 1.1
    assert result.verdict == "inconclusive"
    assert "too unsteady" in result.reason
    assert result.engines[0].latency_ms is not None


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": []}, "batch: no number given"),
        ({"batch": [0]}, "batch: '0' is not a positive whole number"),
        ({"batch": [1, 1]}, "batches must be different"),
        ({"duration": "0s"}, "duration: '0s' must be more than zero"),
        ({"duration": -1.0}, "duration: '-1.0' is out of range"),
        ({"duration": math.nan}, "duration: cannot read 'nan'"),
        ({"duration": math.inf}, "duration: cannot read 'inf'"),
        ({"duration": "2000h"}, "the duration must be between 0 s and 24 h"),
        ({"call_timeout_s": 0.0}, "the call timeout must be between 0 s and 24 h"),
        ({"min_effect": 0.0}, "smallest effect"),
        ({"min_effect": 2.0}, "min_effect: '2.0' is ambiguous: 2 % or 200 %"),
        ({"threads": 0}, "threads: '0' is not a positive whole number"),
        ({"threads": 4096}, "4096 threads exceed the"),
        ({"image_size": 0}, "image_size: 0 is too small"),
    ],
)
def test_invalid_options_are_refused(make_engine: MakeEngine, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench([make_engine()], **options)


def test_invalid_engines_are_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="no engine"):
        bench([])
    with pytest.raises(UsageError, match="an engine is given twice"):
        bench([engine, engine])
    with pytest.raises(UsageError, match="no such file"):
        bench([tmp_path / "absent.tiny"])
    loose = tmp_path / "loose.tiny"
    loose.write_text("{}")
    with pytest.raises(ArtifactError, match="no manifest"):
        bench([loose])
    engine.write_text("{}  ")
    with pytest.raises(UsageError, match="was changed since its manifest was written"):
        bench([engine], duration="0.1s")


def test_batches_outside_an_engines_range_are_refused(make_engine: MakeEngine) -> None:
    fixed, profiled = make_engine("fixed", batch=4), make_engine("profiled", profile=[2, 4, 8])
    with pytest.raises(UsageError, match=r"fixed\.tiny was built for batch 4, not 1"):
        bench([fixed])
    for batch in (1, 9):
        with pytest.raises(UsageError, match=rf"batches 2 to 8, not {batch}"):
            bench([profiled], batch=[4, batch])


def test_engines_for_different_image_sizes_are_not_compared(make_engine: MakeEngine) -> None:
    small, large = make_engine("small", image_size=8), make_engine("large", image_size=16)
    with pytest.raises(UsageError, match="different image sizes"):
        bench([small, large], duration="0.1s", threads=1, control=False)
    with pytest.raises(UsageError, match="fixed image size 8, not 16"):
        bench([small], image_size=16, duration="0.1s", threads=1)


def test_engines_with_the_same_file_name_are_named_by_folder(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    first = make_engine("x/engine", busy_ms=0.5)
    second = make_engine("y/engine", busy_ms=0.5)
    result = bench(
        [first, second], duration="0.1s", threads=1, control=False, raw_dir=tmp_path / "raw"
    )
    assert [e.name for e in result.engines] == ["x/engine.tiny", "y/engine.tiny"]
    assert len({e.raw_file for e in result.engines}) == 2
    assert all((tmp_path / str(e.raw_file)).is_file() for e in result.engines)


def test_workers_that_would_not_fit_into_memory_are_measured_in_groups(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: uses no disk space
    cells = [
        Cell(name=name, engine=huge, batch=batch, image_size=None, threads=1)
        for batch in (1, 8)
        for name in "ab"
    ]
    assert [[c.batch for c in group] for group in split_into_groups(cells)] == [[1, 1], [8, 8]]
    small = tmp_path / "small"
    small.write_bytes(b"x")
    few = [Cell(name="a", engine=small, batch=1, image_size=None, threads=1)]
    assert split_into_groups(few) == [few]


def test_groups_must_fit_into_gpu_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker has a CUDA context and an engine on its GPU; unknown free memory is enough."""
    path = tmp_path / "m.plan"
    with path.open("wb") as stream:
        stream.truncate(1 << 28)  # sparse
    cells = [
        Cell(name=name, engine=path, batch=batch, image_size=None, threads=1)
        for batch in (1, 8)
        for name in "ab"
    ]
    free: dict[str, int | None] = {"bytes": 4 << 30}

    def free_memory() -> dict[str, int]:
        """What one GPU reports."""
        return {} if free["bytes"] is None else {"cuda:0": free["bytes"]}

    monkeypatch.setattr(grouping, "free_memory", free_memory)
    monkeypatch.setattr(grouping, "runs_on", lambda *_: "cuda:0")
    assert len(split_into_groups(cells)) == 2, "four engines need 5 GiB"
    free["bytes"] = 8 << 30
    assert split_into_groups(cells) == [cells]
    free["bytes"] = None
    assert split_into_groups(cells) == [cells]
    monkeypatch.setattr(grouping, "runs_on", lambda *_: "cpu")
    free["bytes"] = 1
    assert split_into_groups(cells) == [cells]


def test_an_engine_with_two_profiles_accepts_the_batches_of_both(tmp_path: Path) -> None:
    def write(target: Path) -> dict[str, Any]:
        target.write_bytes(b"an engine")
        return {}

    settings = {"backend": "tensorrt", "profile": [1, 1, 1], "options": {"profiles": [[8, 32, 64]]}}
    path = tmp_path / "m.plan"
    produce(Plan(kind="engine", settings=settings, inputs=[], libraries={}), path, write)
    (fact,) = describe_engines([path], [1, 8, 64])
    assert fact.batches == ((1, 1), (8, 64))
    with pytest.raises(UsageError, match="was built for batch 1 and batches 8 to 64, not 4"):
        describe_engines([path], [1, 4])
