"""Recipes: one section per stage, named like the flags, and errors that name the key."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

import optimizer
from optimizer.errors import UsageError
from optimizer.options import EncodingPasses
from optimizer.recipe import load_recipe, parse_recipe, save_recipe

DEMO = Path(optimizer.__file__).parent / "recipes" / "demo.yaml"


def test_the_demo_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(DEMO)
    assert recipe.train is not None
    assert recipe.train.arch == "resnet50"
    assert [engine for section in recipe.build for engine in section.engine] == [
        "openvino", "onnxruntime", "openvino", "tensorrt-rtx",
    ]  # fmt: skip
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


RECORDED = sorted((Path(__file__).parents[1] / "reports").rglob("recipe.yaml"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.parent.parent.name))
def test_recorded_recipes_can_be_run(path: Path, tmp_path: Path) -> None:
    """They are how a reader repeats what the reports show."""
    recipe = load_recipe(path)
    save_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_there_are_recorded_recipes() -> None:
    assert len(RECORDED) >= 2


def test_tensorrt_options_go_only_to_tensorrt(tmp_path: Path) -> None:
    section = {
        "precision": "int8", "engine": "openvino,tensorrt-rtx", "profile": "1:1:1,2:8:32",
        "tf32": True, "sparsity": False, "specialization": "lazy", "workspace": "2GiB",
    }  # fmt: skip
    recipe = parse_recipe({"model": "m", "build": section})
    (section,) = recipe.build
    assert section.profile == ((1, 1, 1), (2, 8, 32))
    options = section.for_engine("tensorrt-rtx", "int8", EncodingPasses())
    assert options.as_given() == {
        "precision": "int8", "engine": "tensorrt-rtx", "profile": ["1:1:1", "2:8:32"],
        "workspace": "2GiB", "tf32": True, "specialization": "lazy",
    }  # fmt: skip
    assert options.workspace == 2 << 30
    openvino = section.for_engine("openvino", "int8", EncodingPasses())
    assert openvino.as_given() == {"precision": "int8", "engine": "openvino"}
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_a_provider_and_its_options(tmp_path: Path) -> None:
    section = {
        "precision": "fp16", "engine": "onnxruntime,openvino", "provider": "cuda",
        "provider_options": {"use_tf32": "1"},
    }  # fmt: skip
    recipe = parse_recipe({"model": "m", "build": section})
    assert recipe.build[0].provider == "cuda"
    assert recipe.build[0].provider_options == {"use_tf32": "1"}
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_lists_may_be_comma_separated() -> None:
    recipe = parse_recipe(
        {"model": "m", "build": {"precision": "fp32, int8", "engine": "openvino"}}
    )
    assert recipe.build[0].precision == ("fp32", "int8")


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({}, "either a model or a train section"),
        ({"model": "m", "train": {}}, "either a model or a train section"),
        ({"model": "m", "biuld": {}}, "biuld"),
        (
            {"model": "m", "build": {"engine": "openvino", "opt_level": 0}},
            "--opt-level is for tensorrt",
        ),
        ({"model": "m", "build": {"engine": "openvino", "provider": "cuda"}}, "for onnxruntime"),
        ({"model": "m", "build": {"engine": "onnxruntime", "fixed_batch": 1}}, "is for openvino"),
        (
            {"model": "m", "build": {"engine": "onnxruntime", "provider_options": {"a": "1"}}},
            "provider_options without a provider",
        ),
        ({"model": "m", "build": {"profile": "8:4:32"}}, "profile"),
        ({"model": "m", "build": {"memory_limit": "8"}}, "memory_limit"),
        ({"model": "m", "build": {"precision": "int3"}}, r"build\.0\.precision"),
        (
            {"model": "m", "validate": {"data": "d", "max_drop": "1"}},
            r"validate\.max_drop.*unit pp",
        ),
        ({"model": "m", "bench": {"duration": "soon"}}, r"bench\.duration"),
        ({"model": "m", "calibrate": {"calib_images": 2}}, r"calibrate\.calib_images"),
    ],
)
def test_an_invalid_key_or_value_is_named(raw: dict, where: str) -> None:
    with pytest.raises(UsageError, match=where):
        parse_recipe(raw)


def test_files_that_are_not_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="not a mapping"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_a_saved_recipe_is_plain_yaml(tmp_path: Path) -> None:
    save_recipe(load_recipe(DEMO), tmp_path / "saved.yaml")
    raw = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert raw["validate"]["data"] == "digits:test"


PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"


def test_the_recipe_page_is_up_to_date() -> None:
    """``python docs/recipe_page.py`` writes the page."""
    expected = runpy.run_path(str(PAGE.with_name("recipe_page.py")))["page"]()
    assert PAGE.read_text(encoding="utf-8") == expected


def test_the_recipe_page_shows_a_valid_recipe() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    recipe = parse_recipe(yaml.safe_load(example))
    assert [section.precision for section in recipe.build] == [
        ("fp32", "int8", "mixed"), ("fp16", "int8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("export: {image_size: !!int x}", "not valid YAML"),
        ("export: {image_size: !!int ''}", "not valid YAML"),
        ("arch: !!timestamp x", "not valid YAML"),
        ("arch: !!bool x", "not valid YAML"),
        ("title: 2026-99-99", "not valid YAML"),
        ("title: 2026-09-09", "title: datetime.* is not text"),
        ("export: {image_size: " + "1" * 5000 + "}", "not valid YAML"),
        ("export: {image_size: 0x" + "f" * 5000 + "}", "a number of 20000 bits"),
        ("export: " + "[" * 30 + "]" * 30, "nested more deeply"),
        ("export: " + "[" * 5000 + "]" * 5000, "not valid YAML"),
        ("export: &a [*a]", "nested more deeply"),
        (("a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
         "e: [*d,*d]"), "more values"),
        ("build: {engine: []}", "no engine is given"),
        ("build: {precision: []}", "no precision is given"),
        ("bench: {batch: [0]}", "bench.batch: '0' is not a positive whole number"),
        ("1: 2", "1: Keys should be strings"),
    ],
)  # fmt: skip
def test_hostile_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: resnet18:random:10\n{text}\n")
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_recipe_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("#" * (2 << 20))
    with pytest.raises(UsageError, match="too many for a recipe"):
        load_recipe(tmp_path / "r.yaml")


def test_unknown_engines_are_refused_before_anything_is_made() -> None:
    from optimizer.recipe import RunOptions
    from optimizer.verbs.run import run_recipe

    raw = {"model": "resnet18:random:10", "build": [{"engine": ["onnxruntime", "nope"]}]}
    with pytest.raises(UsageError, match=r"build\.0\.engine: unknown engine 'nope'"):
        run_recipe(raw, RunOptions())


def test_flags_over_sections_that_are_null() -> None:
    from optimizer.recipe import RunOptions
    from optimizer.verbs.run import run_recipe

    raw = {"model": "resnet18:random:10", "bench": None}
    recipe = run_recipe(raw, RunOptions(duration="1s"))
    assert recipe.bench is not None
    assert recipe.bench.duration == 1.0
