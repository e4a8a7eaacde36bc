"""The GPU suite's steps on engines of the CPU, and its report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gpu
import gpu_report
import pytest
import trtexec
from gpu import Case
from materials import Material

from optimizer.engines.cuda import cuda_devices
from optimizer.errors import BuildError

BENCHMARKS = Path(gpu.__file__).parent


@pytest.fixture(scope="module")
def material(small_checkpoint: Path, small_graph: Path, small_statistics: Path) -> Material:
    return Material("small", small_checkpoint, small_graph, small_statistics, 32)


@pytest.fixture(scope="module")
def suite(material: Material, tmp_path_factory: pytest.TempPathFactory) -> gpu.Suite:
    """What the suite makes of two engines of the CPU, one that fails and one that is skipped."""
    found = gpu.Suite(tmp_path_factory.mktemp("suite"), lambda _: material)
    found.run(Case("small", "onnxruntime", "fp32"))
    found.run(Case("small", "onnxruntime", "int8"))
    with pytest.raises(Exception, match="does not compute FP16"):
        found.run(Case("small", "onnxruntime", "fp16"))
    found.skip(Case("small", "tensorrt", "fp8"), "FP8 needs sm89 | or later")
    return found


def test_cases_cover_every_precision() -> None:
    found = gpu.cases()
    assert len(set(found)) == len(found) == 2 * (4 + 4 + 2 + 4 + 4)
    assert {case.precision for case in found if case.provider == "cuda"} == {"fp32", "fp16"}
    assert {case.precision for case in found} <= set(gpu.TOLERANCE)
    assert len({(case.model, case.file) for case in found}) == len(found)


def test_reasons_to_skip() -> None:
    assert gpu.reason_to_skip(Case("small", "onnxruntime", "fp32")) is None
    reason = gpu.reason_to_skip(Case("small", "onnxruntime", "fp16"))
    assert reason is not None
    assert reason.startswith("ONNX Runtime does not compute FP16 on a CPU")
    if cuda_devices():
        return
    for case in gpu.cases():
        assert gpu.reason_to_skip(case)


@pytest.mark.long
def test_engines_are_built_audited_and_compared(suite: gpu.Suite) -> None:
    outcome = suite.outcomes[Case("small", "onnxruntime", "int8")]
    assert outcome["status"] == "passed"
    assert outcome["audit"]["verdict"] == "pass"
    assert 0 < outcome["relative_error"] < gpu.TOLERANCE["int8"]
    assert outcome["engine_bytes"] > 1e6
    assert {path.name for path in suite.built("small").values()} == {
        "onnxruntime-fp32.ort.onnx", "onnxruntime-int8.ort.onnx",
    }  # fmt: skip


def test_a_failure_is_kept(suite: gpu.Suite) -> None:
    outcome = suite.outcomes[Case("small", "onnxruntime", "fp16")]
    assert outcome["status"] == "failed"
    assert "does not compute FP16" in outcome["reason"]


def test_an_engine_of_other_weights_is_found_out(
    suite: gpu.Suite, material: Material, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(gpu.TOLERANCE, "fp32", 1e-12)
    strict = gpu.Suite(tmp_path, lambda _: material)
    case = Case("small", "onnxruntime", "fp32")
    with pytest.raises(AssertionError, match="from the graph as written"):
        strict.run(case)
    assert strict.outcomes[case]["status"] == "failed"
    assert not strict.engines


def test_a_build_has_the_time_that_is_left(material: Material, tmp_path: Path) -> None:
    suite = gpu.Suite(tmp_path, lambda _: material, seconds_left=lambda: -5.0)
    case = Case("small", "onnxruntime", "fp32")
    with pytest.raises(BuildError, match="time limit of 1 s"):
        suite.run(case)
    assert "time limit" in suite.outcomes[case]["reason"]


@pytest.mark.long
def test_accuracy_decides_where_there_is_data(
    small_checkpoint: Path, small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    judged = Material(
        "small", small_checkpoint, small_graph, small_statistics, 32, data="digits:test"
    )
    suite = gpu.Suite(tmp_path, lambda _: judged)
    outcome = suite.run(Case("small", "onnxruntime", "fp32"))
    assert outcome["validate"]["verdict"] in {"pass", "inconclusive"}
    assert outcome["validate"]["finding"]


@pytest.mark.long
def test_the_report_says_what_the_results_say(
    suite: gpu.Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "BATCHES", (1,))
    suite.bench("small", seconds=0.3, threads=1)
    case = Case("small", "onnxruntime", "fp32")
    tool = trtexec.parse(
        "[I] === Performance summary ===\n[I] Throughput: 500 qps\n"
        "[I] Latency: min = 1 ms, max = 3 ms, mean = 2 ms, median = 2 ms\n"
        "[I] GPU Compute Time: min = 1 ms, max = 3 ms, mean = 2 ms, median = 1.75 ms\n",
        batch=8,
    )
    ours = {"gpu_ms": 1.5, "batches_per_s": 600.0, "images_per_s": 4800.0}
    suite.tool_runs += [
        {"model": "small", "engine": case.label, "batch": 8, "ours": ours, "error": None,
         "tool": tool.as_json()},
        {"model": "small", "engine": case.label, "batch": 1, "ours": ours, "tool": None,
         "error": "trtexec is not on the PATH"},
    ]  # fmt: skip
    suite.overheads.append(
        {"model": "small", "engine": case.label, "share": 0.004, "ci95": (0.002, 0.006),
         "ours_ms": 0.5, "raw_ms": 0.498, "verdict": "pass"}
    )  # fmt: skip
    folder = gpu_report.write(suite.results(), tmp_path)
    raw = json.loads((folder / "suite.json").read_text())
    text = (folder / "suite.md").read_text()
    assert gpu_report.markdown(raw) == text
    assert folder.name == gpu_report.slug(raw["device"]["name"])
    measured = [engine for bench in raw["bench"] for engine in bench["engines"]]
    assert len(measured) == 3 * len(gpu.BATCHES), "two engines and PyTorch"
    assert measured[0]["name"] == "PyTorch fp32"
    for engine in measured:
        assert f"| {engine['images_per_s']:.1f} |" in text
        assert f"| {engine['batches_per_s']:.1f} |" in text
    assert "| 1.500 | 1.750 | 4800.0 | 4000.0 | 600.0 | 500.0 |" in text
    assert "trtexec is not on the PATH" in text
    assert "| 500.0 | 498.0 | +0.40% | +0.20% to +0.60% | pass |" in text
    assert "FP8 needs sm89 / or later" in text, "a bar would end the cell"
    assert "failed: " in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    for line in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in line.splitlines()}) == 1
    assert widths


def test_an_empty_run_has_no_tables(material: Material, tmp_path: Path) -> None:
    text = gpu_report.markdown(gpu.Suite(tmp_path, lambda _: material).results())
    assert "|" not in text


@pytest.mark.parametrize(
    ("device", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 3060 Ti", "nvidia-geforce-rtx-3060-ti"),
        ("../..", "unknown"),
    ],
)
def test_a_device_has_a_folder(device: str, folder: str) -> None:
    assert gpu_report.slug(device) == folder


def test_no_benchmark_is_taken_for_a_library() -> None:
    """A script's own folder comes first on its path: ``tensorrt.py`` there would be TensorRT."""
    libraries = {"tensorrt", "tensorrt_rtx", "cuda", "pycuda", "onnx", "onnxruntime", "openvino"}
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert not names & (libraries | {"torch", "numpy", "statistics", "random", "optimizer"})
