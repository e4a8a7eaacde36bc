"""The main job from end to end on real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import optimizer
from optimizer.artifacts import Cache, load_artifact, manifest_path
from optimizer.engines import get_backend
from optimizer.errors import DataError, EnvironmentFault, UsageError
from optimizer.recipe import Recipe, load_recipe, parse_recipe
from optimizer.results import RunResult, SearchResult, read_result

pytestmark = pytest.mark.long

ENGINES = ["openvino-fp32.blob", "openvino-int8.blob", "onnxruntime-int8.ort.onnx"]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    build = [
        {"precision": "fp32,int8", "engine": "openvino"},
        {"precision": "int8", "engine": "onnxruntime"},
        {"precision": "fp16", "engine": "onnxruntime"},
    ]
    if get_backend("tensorrt-rtx").availability().can_build:
        build.append({"precision": "int8", "engine": "tensorrt-rtx", "target": "sm86,sm89"})
    return parse_recipe(
        {
            "title": "golden",
            "train": {"arch": "resnet18", "epochs": 2},
            "calibrate": {"calib": "digits:train", "calib_images": 64},
            "build": build,
            "validate": {"data": "digits:test", "max_drop": "3pp"},
            "bench": {"batch": 1, "duration": "300ms"},
        }
    )


@pytest.fixture(scope="module")
def first(
    recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunResult, Path, Cache]:
    base = tmp_path_factory.mktemp("run")
    cache = Cache(base / "cache")
    result = optimizer.run(recipe, base / "first", cache=cache)
    assert read_result(base / "first" / "results.json") == result  # later runs write it again
    return result, base / "first", cache


def test_the_run_folder_is_complete(first: tuple[RunResult, Path, Cache]) -> None:
    _, folder, _ = first
    for name in (
        "model.safetensors",
        "model.onnx",
        "statistics.npz",
        "validate.json",
        "bench.json",
    ):
        load_artifact(folder / name)
    for name in ENGINES:
        engine = load_artifact(folder / "engines" / name, kind="engine")
        graph = folder / "engines" / f"{name}.graph.onnx"
        assert load_artifact(graph).manifest.sha256 == engine.manifest.inputs[0].sha256
    for name in ("report.html", "report.md", "results.json", "recipe.yaml", "predictions.npz"):
        assert (folder / name).stat().st_size > 0
    assert load_recipe(folder / "recipe.yaml").title == "golden"
    assert [path.name for path in folder.rglob(".*")] == [".resnet-opt-training"]


def test_openvino_is_compiled_for_the_measured_batches(
    first: tuple[RunResult, Path, Cache], recipe: Recipe
) -> None:
    assert recipe.bench is not None
    engine = load_artifact(first[1] / "engines" / "openvino-int8.blob")
    assert engine.manifest.settings["fixed_batches"] == list(recipe.bench.batch)


def test_accuracy_is_kept_and_reported(first: tuple[RunResult, Path, Cache]) -> None:
    result = first[0]
    validated = result.validate_
    assert validated is not None
    assert validated.dataset.n == 540
    hops = {hop.name: hop for hop in validated.hops}
    assert hops["reference"].top1 is not None
    assert hops["reference"].top1 > 0.85
    assert hops["onnx fp32"].flips == 0
    for name in ENGINES:
        assert hops[name].verdict == "pass", hops[name]
        assert hops[name].sqnr_db is not None
        assert hops[name].sqnr_db > 20
    assert validated.first_failing_hop is None
    assert validated.verdict == "pass"


def test_every_engine_computes_in_the_requested_precision(
    first: tuple[RunResult, Path, Cache],
) -> None:
    validated = first[0].validate_
    assert validated is not None
    assert set(ENGINES) <= set(validated.audits)
    for name, audit in validated.audits.items():
        assert audit.verdict == "pass", (name, audit)
        assert audit.share is not None
        assert audit.share >= 0.95


def test_speed_is_measured_beside_pytorch(first: tuple[RunResult, Path, Cache]) -> None:
    measured = first[0].bench
    assert measured is not None
    timed = {engine.name: engine for engine in measured.engines if engine.status == "ok"}
    assert set(timed) == {"model.safetensors", *ENGINES}
    assert {c.b for c in measured.comparisons} == set(ENGINES)
    assert {c.a for c in measured.comparisons} == {"model.safetensors"}
    assert measured.a_a_control is not None


def test_an_unavailable_engine_is_recorded_with_the_reason(
    first: tuple[RunResult, Path, Cache],
) -> None:
    stages = {stage.label: stage for stage in first[0].stages}
    assert stages["onnxruntime fp16"].status == "unavailable"
    assert "would compute in FP32" in str(stages["onnxruntime fp16"].note)
    rtx = stages.get("tensorrt-rtx int8")
    if rtx is not None and not get_backend("tensorrt-rtx").availability().can_run:
        assert rtx.status == "built-not-run"
        assert any("not run here" in sentence for sentence in first[0].findings)


def test_a_second_run_builds_nothing(first: tuple[RunResult, Path, Cache], recipe: Recipe) -> None:
    before = {path: path.stat().st_mtime_ns for path in (first[1] / "engines").iterdir()}
    again = optimizer.run(recipe, first[1], cache=first[2])
    assert all(stage.cached for stage in again.stages if stage.file)
    assert {path: path.stat().st_mtime_ns for path in (first[1] / "engines").iterdir()} == before
    assert again.validate_ == first[0].validate_
    assert again.bench == first[0].bench


def test_another_folder_takes_the_artifacts_from_the_cache(
    first: tuple[RunResult, Path, Cache], recipe: Recipe, tmp_path: Path
) -> None:
    quick = recipe.model_copy(update={"validation": None, "bench": None})
    assert recipe.bench is not None  # whose batches OpenVINO is compiled for
    fixed = {"fixed_batch": recipe.bench.batch}
    sections = tuple(
        section.model_copy(update=fixed if "openvino" in section.engine else {})
        for section in recipe.build
    )
    quick = quick.model_copy(update={"build": sections})
    quick = quick.model_copy(
        update={"calibrate": recipe.calibrate.model_copy(update={"calib": "digits:train"})}
    )
    result = optimizer.run(quick, tmp_path / "second", cache=first[2])
    stages = [stage for stage in result.stages if stage.file]
    assert stages
    assert all(stage.cached for stage in stages)


def test_validation_data_is_split_if_there_is_no_calibration_data(
    first: tuple[RunResult, Path, Cache], tmp_path: Path
) -> None:
    """Calibration and validation never use the same image."""
    result = optimizer.run(
        parse_recipe(
            {
                "model": str(first[1] / "model.safetensors"),
                "calibrate": {"calib_images": 100},
                "build": {"precision": "int8", "engine": "openvino"},
                "validate": {"data": "digits:test", "max_drop": "5pp"},
                "bench": None,
            }
        ),
        tmp_path / "split",
    )
    assert result.validate_ is not None
    assert result.validate_.dataset.n == 440
    manifest = json.loads(manifest_path(tmp_path / "split" / "statistics.npz").read_text())
    assert manifest["settings"]["images"] == 100


def test_mixed_precision_searches_on_images_that_are_not_validated_on(
    first: tuple[RunResult, Path, Cache], tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    result = optimizer.run(
        parse_recipe(
            {
                "model": str(first[1] / "model.safetensors"),
                "calibrate": {"calib_images": 100},
                "build": {"precision": "int8,mixed", "engine": "openvino", "keep": "fc"},
                "validate": {"data": "digits:test", "max_drop": "20pp"},
                "bench": None,
            }
        ),
        folder,
    )
    search = read_result(folder / "engines" / "openvino-mixed.search.json")
    assert isinstance(search, SearchResult)
    assert (search.calibration_images, search.search_images) == (100, 170)
    assert search.front[search.chosen].kept == ["fc"]
    stage = next(stage for stage in result.stages if stage.name == "search")
    assert stage.note == search.finding
    assert result.validate_ is not None
    assert result.validate_.dataset.n == 270
    for name in ("int8", "mixed"):  # with a layer kept, both are mixed
        audit = result.validate_.audits[f"openvino-{name}.blob"]
        assert (audit.asked, audit.verdict) == ("mixed", "pass")
    manifest = json.loads(manifest_path(folder / "statistics.npz").read_text())
    assert manifest["settings"]["images"] == 100


def test_mixed_precision_without_validation_images_is_refused(
    first: tuple[RunResult, Path, Cache], tmp_path: Path
) -> None:
    recipe = parse_recipe(
        {
            "model": str(first[1] / "model.safetensors"),
            "calibrate": {"calib": "digits:train"},
            "build": {"precision": "mixed", "engine": "openvino"},
        }
    )
    with pytest.raises(UsageError, match="others to validate its result"):
        optimizer.run(recipe, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_run_that_can_build_no_engine_is_an_environment_fault(
    first: tuple[RunResult, Path, Cache], tmp_path: Path
) -> None:
    recipe = parse_recipe(
        {
            "model": str(first[1] / "model.safetensors"),
            "build": {"precision": "fp16", "engine": "onnxruntime"},
            "bench": None,
        }
    )
    with pytest.raises(EnvironmentFault, match="no engine could be built"):
        optimizer.run(recipe, tmp_path / "none")


def test_an_unavailable_provider_is_recorded(small_checkpoint: Path, tmp_path: Path) -> None:
    from optimizer.engines.providers import PROVIDERS
    from optimizer.engines.providers.status import provider_status

    if provider_status(PROVIDERS["cuda"]).usable:
        pytest.skip("ONNX Runtime's CUDA provider works on this machine")
    recipe = parse_recipe(
        {
            "model": str(small_checkpoint),
            "build": [
                {"precision": "fp32", "engine": "onnxruntime"},
                {"precision": "fp32", "engine": "onnxruntime", "provider": "cuda"},
            ],
            "validate": {"data": "digits:test", "limit": 20},
            "bench": None,
        }
    )
    result = optimizer.run(recipe, tmp_path / "run")
    (missing,) = (stage for stage in result.stages if stage.label == "onnxruntime-cuda fp32")
    assert missing.status == "unavailable"
    assert "provider cuda cannot be used here" in str(missing.note)
    assert (tmp_path / "run" / "engines" / "onnxruntime-fp32.ort.onnx").is_file()


def test_missing_data_is_reported_before_the_work_starts(
    first: tuple[RunResult, Path, Cache], tmp_path: Path
) -> None:
    recipe = parse_recipe(
        {
            "model": str(first[1] / "model.safetensors"),
            "build": {"precision": "fp32", "engine": "openvino"},
            "validate": {"data": str(tmp_path / "nowhere")},
        }
    )
    with pytest.raises(DataError, match="nowhere"):
        optimizer.run(recipe, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_engine_without_weights_is_built_but_not_run() -> None:
    """On any machine: it cannot run until it is refitted."""
    from optimizer.options import BuildOptions
    from optimizer.verbs.job import _reason_not_runnable

    runs = get_backend("openvino")
    stripped = BuildOptions(engine="tensorrt", strip_weights=True)
    assert "refit" in (_reason_not_runnable(runs, stripped) or "")
    assert _reason_not_runnable(runs, BuildOptions(engine="openvino")) is None
