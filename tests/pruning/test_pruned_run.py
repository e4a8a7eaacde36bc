"""Recipes that prune: both networks are built, judged against the first, and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import optimizer
from optimizer.artifacts import Cache, load_artifact
from optimizer.errors import CheckpointError, DataError, UsageError
from optimizer.models import Model, load_model, save_checkpoint
from optimizer.options import PruneOptions
from optimizer.recipe import RunOptions, load_recipe, parse_recipe, save_recipe
from optimizer.results import PruneResult, RunResult, read_result
from optimizer.verbs.run import run_recipe
from tests.pruning.networks import tiny

ENGINES = ["openvino-fp32.blob", "onnxruntime-int8.ort.onnx"]


def _recipe(
    checkpoint: Path, table: Path, data: str, prune: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    section = {
        "data": data, "table": str(table), "speedup": 1.3, "epochs": 1, "step": 4,
        "saliency_images": 64, "engine": "openvino", **(prune or {}),
    }  # fmt: skip
    return {
        "model": str(checkpoint),
        "prune": {name: value for name, value in section.items() if value is not None},
        "calibrate": {"calib": data, "calib_images": 32},
        "build": [
            {"engine": "openvino", "precision": "fp32"},
            {"engine": "onnxruntime", "precision": "int8,fp16"},
        ],
        "validate": {"data": "digits:test", "limit": 120, "max_drop": "30pp"},
        "bench": {"batch": 1, "duration": "50ms"},
    }


@pytest.fixture(scope="module")
def ran(
    checkpoint: Path, table: Path, digits: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunResult, Path, dict[str, Any], Cache]:
    base = tmp_path_factory.mktemp("run")
    # An engine whose table is modelled on any machine, so that nothing depends on how busy this one is.
    modelled = {"engine": "tensorrt-rtx", "table": None}
    recipe, cache = _recipe(checkpoint, table, digits, modelled), Cache(base / "cache")
    return optimizer.run(recipe, base / "run", cache=cache), base / "run", recipe, cache


Ran = tuple[RunResult, Path, dict[str, Any], Cache]


@pytest.mark.long
def test_both_networks_are_in_the_folder(ran: Ran, learned: Model) -> None:
    _, folder, _, _ = ran
    for name in ("pruned.safetensors", "pruned.onnx", "pruned.statistics.npz"):
        load_artifact(folder / name)
    table = load_artifact(folder / "pruned.table.json", kind="latency-table")
    assert table.manifest.details["source"] == "model"
    assert load_model(folder / "pruned.safetensors").pruned_from == learned.sha256
    built = {path.name for path in (folder / "engines").iterdir()}
    assert {name for engine in ENGINES for name in (engine, f"pruned-{engine}")} <= built
    stored = read_result(folder / "pruned.prune.json")
    assert isinstance(stored, PruneResult)
    assert stored.latency[0].speedup >= 1.3
    assert not (folder / "pruned.pruning").exists()
    assert load_recipe(folder / "recipe.yaml").prune is not None


@pytest.mark.long
def test_both_are_judged_against_the_network_before(ran: Ran) -> None:
    validated = ran[0].validate_
    assert validated is not None
    hops = {hop.name: hop for hop in validated.hops}
    assert [hop.name for hop in validated.hops if hop.parent is None] == ["reference"]
    assert hops["pruned"].parent == "reference"
    graph = next(hop for hop in validated.hops if hop.parent == "pruned")
    assert graph.precision == "fp32"
    assert hops["pruned"].flips == graph.flips != hops["onnx fp32"].flips == 0
    for engine in ENGINES:
        assert hops[engine].status == hops[f"pruned-{engine}"].status == "ok"


@pytest.mark.long
def test_both_are_measured_in_the_same_rounds(ran: Ran) -> None:
    measured = ran[0].bench
    assert measured is not None
    names = {engine.name for engine in measured.engines if engine.status == "ok"}
    assert names == {"model.safetensors", *ENGINES, *(f"pruned-{engine}" for engine in ENGINES)}
    missing = [stage.label for stage in ran[0].stages if stage.status == "unavailable"]
    assert missing == ["onnxruntime fp16", "pruned onnxruntime fp16"]


@pytest.mark.long
def test_a_second_run_prunes_nothing(ran: Ran) -> None:
    first, folder, recipe, cache = ran
    again = optimizer.run(recipe, folder, cache=cache)
    assert all(stage.cached for stage in again.stages if stage.file)
    assert again.validate_ == first.validate_


# --- the section ---------------------------------------------------------------------------------


def _parsed(**raw: Any) -> Any:
    return parse_recipe({"model": "m", "validate": {"data": "digits:test"}, **raw})


@pytest.mark.parametrize(
    ("build", "engine", "precision"),
    [
        ({"engine": "onnxruntime,openvino", "precision": "fp32,int8"}, "onnxruntime", "int8"),
        ({"engine": "torch,openvino", "precision": "mixed"}, "openvino", "int8"),
        ({"engine": "tensorrt-rtx", "precision": "fp16"}, "tensorrt-rtx", "fp16"),
        ([{"engine": "openvino", "precision": "fp32"},
          {"engine": "onnxruntime", "precision": "int8", "provider": "cuda"}], "auto", "int8"),
    ],
)  # fmt: skip
def test_what_the_latency_counts_for_comes_from_the_builds(
    build: Any, engine: str, precision: str, tmp_path: Path
) -> None:
    recipe = _parsed(build=build, prune={"speedup": 2, "rounds": 3}, calibrate={"calib": "d"})
    save_recipe(recipe, tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert recipe.prune.options(recipe) == PruneOptions(
        data="d", engine=engine, precision=precision, speedup=2, rounds=3
    )


def test_training_images_come_from_the_section_the_training_or_the_calibration() -> None:
    trained = {"model": None, "train": {"data": "t"}, "calibrate": {"calib": "c"}}
    for given, expected in (({}, "t"), ({"data": "d"}, "d")):
        recipe = _parsed(**trained, prune={"speedup": 2, **given})
        assert recipe.prune.options(recipe).data == expected


def test_a_speedup_on_the_command_line_prunes_and_replaces_another_aim() -> None:
    flags = RunOptions(
        speedup=2.0, data="digits:test", calib="digits:train", workers=0, labels_from=1
    )
    recipe = run_recipe("resnet18:random:10", flags)
    assert recipe.prune is not None
    assert (recipe.prune.speedup, recipe.prune.workers, recipe.prune.labels_from) == (2.0, 0, 1)
    raw = {"model": "m", "validate": {"data": "d"}, "prune": {"data": "t", "keep_flops": "50%"}}
    overridden = run_recipe(raw, RunOptions(speedup=2.0))
    assert overridden.prune is not None
    assert (overridden.prune.speedup, overridden.prune.keep_flops) == (2.0, None)
    assert run_recipe("resnet18:random:10", RunOptions()).prune is None


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"prune": {}}, "prune: pruning needs one aim, not no aim"),
        ({"prune": {"speedup": 2, "keep_flops": "50%"}}, "--speedup and --keep-flops"),
        ({"prune": {"speedup": 0.5}}, r"prune\.speedup: 0\.5 is too small"),
        ({"prune": {"speed_up": 2}}, r"prune\.speed_up: no such option"),
        ({"prune": {"max_latency": "5"}}, r"prune\.max_latency"),
        ({"prune": {"speedup": 2}}, r"prune\.data: there are no training images"),
        ({"prune": {"speedup": 2, "data": "d"}, "validate": None}, "images that judge the pruned"),
        ({"prune": {"speedup": 2, "val": "d"}}, r"prune\.val: no such option"),
    ],
)
def test_a_mistake_in_the_section_names_the_key(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _parsed(**raw)


@pytest.mark.parametrize(
    ("prune", "error", "message"),
    [
        ({"data": "digits:test"}, DataError, r"prune\.data: 120 of the 120 images of digits:test"),
        ({"data": "nowhere"}, DataError, "nowhere"),
        ({"engine": "nope"}, UsageError, r"prune\.engine: unknown engine 'nope'"),
        ({"engine": "torch", "table": None}, UsageError, "prune: the torch engine runs"),
        ({"table": "none.json"}, UsageError, r"prune: no such file: none\.json"),
        ({"device": "cuda:7"}, optimizer.errors.EnvironmentFault, "cuda"),
    ],
)
def test_bad_input_is_refused_before_the_work(
    prune: dict[str, Any],
    error: type[Exception],
    message: str,
    checkpoint: Path,
    table: Path,
    digits: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        optimizer.run(_recipe(checkpoint, table, digits, prune), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_that_cannot_be_pruned_are_refused_before_the_work(
    table: Path, digits: str, tmp_path: Path
) -> None:
    recipe = _recipe(Path("retinanet_resnet18_fpn:random:3"), table, digits)
    with pytest.raises(CheckpointError, match="is a detector"):
        optimizer.run(recipe, tmp_path / "run")
    trained = {**recipe, "train": {"arch": "retinanet_resnet18_fpn", "data": "digits-scenes:train"}}
    del trained["model"]
    with pytest.raises(CheckpointError, match="is a detector"):
        optimizer.run(trained, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_of_other_classes_are_refused_before_the_pruning(
    table: Path, digits: str, tmp_path: Path
) -> None:
    other = replace(tiny("resnet18", classes=4), classes=None)
    path = save_checkpoint(other, tmp_path / "m.safetensors", details={}).path
    with pytest.raises(DataError, match="has 10 classes, but the model has 4"):
        optimizer.run(_recipe(path, table, digits), tmp_path / "run")
    assert not (tmp_path / "run" / "pruned.safetensors").exists()


@pytest.mark.long
def test_an_aim_out_of_reach_ends_the_run_with_the_floor(
    checkpoint: Path, table: Path, digits: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="after everything was cut") as caught:
        optimizer.run(_recipe(checkpoint, table, digits, {"speedup": 50.0}), tmp_path / "run")
    assert (caught.value.hint or "").startswith("--speedup ")
    assert not (tmp_path / "run" / "model.onnx").exists()
