"""The sentences at the top of the report agree with the numbers."""

from __future__ import annotations

from optimizer.models.keras_pixels import caffe_preprocessing
from optimizer.reporting.findings import findings
from optimizer.results import RunResult


def _sentences(run: RunResult) -> list[str]:
    audits = run.validate_.audits if run.validate_ else {}
    return findings(run.validate_, run.bench, audits, run.stages)


def test_the_fastest_engine_and_its_accuracy_come_first(full_run: RunResult) -> None:
    assert full_run.bench is not None
    first, second, *_ = _sentences(full_run)
    smallest = min(c.batch for c in full_run.bench.comparisons)
    best = max(
        (c for c in full_run.bench.comparisons if c.batch == smallest), key=lambda c: c.ratio
    )
    assert first.startswith(best.b)
    assert f"{best.ci95[0]:.2f} to {best.ci95[1]:.2f}" in first or f"{best.ci95[0]:.1f} to" in first
    assert "of 540 predictions changed" in second


def test_assumed_preprocessing_is_stated(full_run: RunResult) -> None:
    def stated(source: str, assumed: bool) -> bool:
        settings = {"source": source, "preprocessing_assumed": assumed}
        manifest = {"settings": settings, "preprocessing": caffe_preprocessing(224).to_dict()}
        loaded = full_run.stages[0].model_copy(update={"manifest": manifest})
        stages = [loaded, *full_run.stages[1:]]
        sentences = _sentences(full_run.model_copy(update={"stages": stages}))
        found = [line for line in sentences if "do not state their preprocessing" in line]
        assert all("BGR, mean 0.408, 0.458, 0.485, std 0.00392" in line for line in found)
        return bool(found)

    assert stated("w.pth", True)
    assert not stated("w.pth", False)
    assert not stated("resnet18:random", True)


def test_an_unsteady_machine_gives_no_speed_up(full_run: RunResult) -> None:
    assert full_run.bench is not None
    unsteady = full_run.bench.model_copy(
        update={"verdict": "inconclusive", "reason": "too unsteady"}
    )
    (first, *_) = _sentences(full_run.model_copy(update={"bench": unsteady}))
    assert "could not be measured: too unsteady" in first
    assert "times as fast" not in " ".join(
        _sentences(full_run.model_copy(update={"bench": unsteady}))
    )


def test_a_speed_up_names_the_hardware_under_pytorch(full_run: RunResult) -> None:
    """Compared with a GPU engine, "PyTorch eager" is named with its device."""
    assert full_run.bench is not None
    names = {"PyTorch eager FP32": "model.safetensors"}
    comparisons = [
        c.model_copy(update={"a": names.get(c.a, c.a)}) for c in full_run.bench.comparisons
    ]

    def first(pytorch: str | None, engines: str | None) -> str:
        assert full_run.bench is not None
        measured = [
            e.model_copy(
                update={
                    "name": names.get(e.name, e.name),
                    "runs_on": pytorch if e.backend == "torch" else engines,
                }
            )
            for e in full_run.bench.engines
        ]
        bench = full_run.bench.model_copy(update={"engines": measured, "comparisons": comparisons})
        return _sentences(full_run.model_copy(update={"bench": bench}))[0]

    assert "as fast as PyTorch eager (" in first("cpu", "cpu")
    assert "as fast as PyTorch eager (" in first(None, None)
    assert "as fast as PyTorch eager on the CPU (" in first("cpu", "cuda:0")
    assert "as fast as PyTorch eager on the GPU (cuda:1) (" in first("cuda:1", "cuda:1")


def test_failed_measurements_are_stated(full_run: RunResult) -> None:
    assert full_run.bench is not None
    broken = full_run.bench.model_copy(
        update={"failed": ["x"], "verdict": "fail", "reason": "1 measurement failed: x"}
    )
    assert "1 measurement failed: x." in _sentences(full_run.model_copy(update={"bench": broken}))


def test_every_sample_has_sentences(any_run: RunResult) -> None:
    for sentence in _sentences(any_run):
        assert sentence.strip()
        assert sentence.endswith((".", "!", "?", ">", "`", "x")) or sentence[-1].isalnum()
