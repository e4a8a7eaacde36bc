"""Detectors in the main job: the demo's recipe, and a run from a checkpoint to the report."""

from __future__ import annotations

from pathlib import Path

import pytest

import optimizer
from optimizer.artifacts import Cache
from optimizer.errors import DataError, UsageError
from optimizer.recipe import DemoOptions
from optimizer.results import ValidateResult, read_result
from optimizer.verbs.run import demo_folder, demo_recipe


def test_the_demo_of_a_task_has_its_recipe_and_folder() -> None:
    recipe = demo_recipe(DemoOptions(task="detection", duration="1s"))
    assert recipe.train is not None
    assert recipe.train.arch == "retinanet_resnet18_fpn"
    assert recipe.validation is not None
    assert recipe.validation.max_lost is not None
    assert recipe.bench is not None
    assert recipe.bench.duration == 1
    folders = [demo_folder(options) for options in (
        DemoOptions(), DemoOptions(arch="resnet18"), DemoOptions(task="detection"),
        DemoOptions(task="detection", arch="fcos_resnet50_fpn"),
    )]  # fmt: skip
    assert [folder.name for folder in folders] == [
        "demo", "demo-resnet18", "demo-detection", "demo-fcos_resnet50_fpn",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        ({"data": "digits-scenes:test"}, DataError, "has boxes, but the network is a classifier"),
        (
            {"data": "digits:test", "max_lost": "3%"},
            UsageError,
            "--max-lost limits lost detections",
        ),
    ],
)
def test_images_and_limits_of_another_task_are_refused_before_the_work(
    validation: dict[str, str],
    error: type[Exception],
    message: str,
    small_checkpoint: Path,
    tmp_path: Path,
) -> None:
    recipe = {
        "model": str(small_checkpoint),
        "build": {"engine": "openvino", "precision": "fp32"},
        "validate": validation,
    }
    with pytest.raises(error, match=message):
        optimizer.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "model.onnx").exists()


@pytest.mark.long
def test_a_detector_runs_to_its_report(tmp_path: Path) -> None:
    """Random weights: what is found is meaningless, but all stages and the report are real."""
    result = optimizer.run(
        {
            "title": "detector",
            "model": "retinanet_resnet18_fpn:random:10",
            "export": {"image_size": 64},
            "calibrate": {"calib": "digits-scenes:train", "calib_images": 16},
            "build": [{"precision": ["fp32", "int8"], "engine": "openvino"}],
            "validate": {"data": "digits-scenes:test", "limit": 12, "max_drop": "50pp",
                         "max_lost": "90%", "score_threshold": 0.1},
            "bench": {"batch": 1, "duration": "100ms"},
        },
        tmp_path / "run",
        cache=Cache(tmp_path / "cache"),
    )  # fmt: skip
    assert not [stage.label for stage in result.stages if stage.status == "failed"]
    validated = read_result(tmp_path / "run" / "validate.json")
    assert isinstance(validated, ValidateResult)
    assert validated.task == "detection"
    assert validated.gates.score_threshold == 0.1
    engine = next(hop for hop in validated.hops if hop.engine == "openvino-int8.blob")
    assert engine.detection is not None
    assert engine.detection.lost is not None
    assert set(engine.detection.drop_by_size) <= {"small", "medium", "large"}
    assert engine.detection.drop_by_class
    assert len(engine.detection.precision_at_recall["0.50"]) == 101
    assert len(validated.examples) == 4
    assert set(validated.examples[0].engines) == {"openvino-fp32.blob", "openvino-int8.blob"}
    assert validated.timing is not None
    assert validated.timing.images_computed["openvino-int8.blob"] == 12
    assert result.bench is not None
    assert {bench.status for bench in result.bench.engines} == {"ok"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 4
    assert "Precision over recall" in page
    assert "Lost" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
