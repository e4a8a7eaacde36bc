from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.reporting.join import baseline_label, baseline_name, engine_rows, file_in_run
from optimizer.results import BatchConsistency, Comparison, RunResult


def test_speed_accuracy_audit_and_build_of_an_engine_are_joined(full_run: RunResult) -> None:
    (row,) = [r for r in engine_rows(full_run) if r.name == "OpenVINO INT8"]
    assert [bench.batch for bench in row.benches] == [1, 8]
    assert row.hop is not None
    assert row.hop.name == "OpenVINO INT8 engine"
    assert row.audit is not None
    assert row.audit.share == 0.9712
    assert [check.engine for check in row.consistency] == ["engines/model.int8.openvino.blob"]
    assert row.stage is not None
    assert row.stage.label == "OpenVINO INT8"
    assert row.path == "engines/model.int8.openvino.blob"


def test_no_engine_is_lost_or_duplicated(full_run: RunResult) -> None:
    names = [row.name for row in engine_rows(full_run)]
    assert names == [
        "PyTorch eager FP32",
        "ONNX Runtime FP32",
        "OpenVINO FP32",
        "OpenVINO BF16",
        "ONNX Runtime INT8",
        "OpenVINO INT8",
        "TensorRT-RTX FP16",
    ]


def test_the_reference_belongs_to_the_eager_baseline(full_run: RunResult) -> None:
    first = engine_rows(full_run)[0]
    assert first.is_baseline
    assert first.is_reference


def test_an_engine_that_cannot_be_opened_has_the_audit_of_its_build(
    full_run: RunResult,
) -> None:
    last = engine_rows(full_run)[-1]
    assert last.status == "built-not-run"
    assert last.audit is not None
    assert last.audit.asked == "fp16"
    assert last.reasons == ["needs an NVIDIA GPU to be loaded; this machine has none"]


def test_a_reason_recorded_twice_is_shown_once(full_run: RunResult) -> None:
    assert full_run.bench
    full_run.stages[-1].note = "built, not run: no NVIDIA driver"
    full_run.bench.engines[-1].error = "x.rtx cannot run here: no NVIDIA driver (run it elsewhere)"
    assert full_run.validate_
    full_run.validate_.hops[-1].error = full_run.bench.engines[-1].error
    assert engine_rows(full_run)[-1].reasons == [full_run.bench.engines[-1].error]


def test_a_failed_build_without_a_file_has_a_row(failing_run: RunResult) -> None:
    last = engine_rows(failing_run)[-1]
    assert (last.name, last.status) == ("OpenVINO FP8", "failed")
    assert last.reasons == ["FP8 is not computed by this CPU"]


def test_a_batch_that_failed_does_not_fail_the_engine(failing_run: RunResult) -> None:
    (row,) = [r for r in engine_rows(failing_run) if r.name == "OpenVINO BF16"]
    assert row.status == "ok"
    assert row.reasons == ["batch 8 failed: the process was killed at 24 GiB of memory"]


def test_file_names_in_the_bench_match_paths_elsewhere(full_run: RunResult) -> None:
    """The bench names an engine by its file name, the other results by a path."""
    assert full_run.bench
    full_run.stages[-1].note = "built, not run: needs an NVIDIA GPU to be loaded"
    for engine in full_run.bench.engines:
        engine.name = engine.file = Path(engine.file).name
    for comparison in full_run.bench.comparisons:
        comparison.b = "model.int8.openvino.blob"
    rows = {row.name: row for row in engine_rows(full_run)}
    assert len(rows) == 7
    row = rows["model.int8.openvino.blob"]
    assert row.hop
    assert row.stage
    assert row.path == "engines/model.int8.openvino.blob"
    assert baseline_label(full_run.bench) == "PyTorch eager FP32 (model.safetensors)"


def test_an_ambiguous_reference_joins_no_engine(full_run: RunResult) -> None:
    assert full_run.bench
    assert full_run.validate_
    names = iter(["a/x.blob", "b/x.blob"])
    full_run.bench.engines = full_run.bench.engines[1:3]
    for engine in full_run.bench.engines:
        engine.name, engine.file = next(names), "x.blob"
    check = BatchConsistency(
        engine="x.blob", batches=[1], max_abs_diff=0, tolerance=0, verdict="pass", reason="same"
    )
    full_run.validate_.batch_consistency = [
        check,
        check.model_copy(update={"engine": "run/b/x.blob"}),
    ]
    rows = {row.name: row for row in engine_rows(full_run)}
    assert rows["a/x.blob"].consistency == []
    assert [c.engine for c in rows["b/x.blob"].consistency] == ["run/b/x.blob"]
    assert [c.engine for c in rows["x.blob"].consistency] == ["x.blob"]


def test_a_comparison_in_the_other_direction_is_inverted(full_run: RunResult) -> None:
    assert full_run.bench
    for index, c in enumerate(full_run.bench.comparisons):
        if c.b == "OpenVINO INT8" and c.batch == 1:
            full_run.bench.comparisons[index] = Comparison(
                a=c.b,
                b=c.a,
                batch=1,
                ratio=0.2,
                ci95=(0.1, 0.25),
                min_effect=0.02,
                verdict="slower",
            )
    (row,) = [r for r in engine_rows(full_run) if r.name == "OpenVINO INT8"]
    inverted = row.speedups[1]
    assert (inverted.a, inverted.b) == ("PyTorch eager FP32", "OpenVINO INT8")
    assert inverted.ratio == pytest.approx(5)
    assert inverted.ci95 == pytest.approx((4, 10))
    assert inverted.verdict == "faster"


@given(st.floats(0.01, 100), st.floats(0.5, 1), st.floats(1, 2))
def test_inverting_keeps_the_ratio_inside_its_interval(
    ratio: float, low: float, high: float
) -> None:
    from optimizer.reporting.join import _from_baseline

    c = Comparison(
        a="x", b="base", batch=1, ratio=ratio, ci95=(ratio * low, ratio * high), min_effect=0.02,
        verdict="inconclusive",
    )  # fmt: skip
    inverted = _from_baseline("base", c)
    assert inverted is not None
    assert inverted.ci95[0] <= inverted.ratio * (1 + 1e-9)
    assert inverted.ratio <= inverted.ci95[1] * (1 + 1e-9)
    assert inverted.ratio * c.ratio == pytest.approx(1)


def test_two_timings_of_one_name_at_one_batch_get_no_speed_up(full_run: RunResult) -> None:
    assert full_run.bench
    again = next(e for e in full_run.bench.engines if e.name == "OpenVINO INT8" and e.batch == 1)
    full_run.bench.engines.append(again.model_copy(update={"threads": 1}))
    (row,) = [r for r in engine_rows(full_run) if r.name == "OpenVINO INT8"]
    assert len(row.benches) == 3
    assert list(row.speedups) == [8]


def test_the_baseline_is_the_torch_engine_in_most_comparisons(full_run: RunResult) -> None:
    assert full_run.bench
    other = full_run.bench.engines[0].model_copy(update={"name": "PyTorch, other layout"})
    full_run.bench.engines.insert(0, other)
    assert baseline_name(full_run.bench) == "PyTorch eager FP32"


def test_without_torch_the_baseline_is_the_first_engine_of_most_comparisons(
    full_run: RunResult,
) -> None:
    assert full_run.bench
    full_run.bench.engines = [e for e in full_run.bench.engines if e.backend != "torch"]
    full_run.bench.comparisons = [
        c for c in full_run.bench.comparisons if c.a == "ONNX Runtime FP32"
    ]
    assert baseline_name(full_run.bench) == baseline_label(full_run.bench) == "ONNX Runtime FP32"
    full_run.bench.comparisons = []
    assert baseline_name(full_run.bench) is None


def test_a_file_name_links_to_the_file_of_its_stage(full_run: RunResult) -> None:
    assert file_in_run(full_run, "model.int8.ort.onnx") == "engines/model.int8.ort.onnx"
    assert file_in_run(full_run, "model.safetensors") == "model.safetensors"
    assert file_in_run(full_run, "elsewhere.onnx") is None
    assert file_in_run(full_run, "sub/elsewhere.onnx") == "sub/elsewhere.onnx"
    assert file_in_run(full_run, None) is None
