"""Options: defined once, and validated alike in Python, YAML and on the command line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import optimizer
from optimizer import options as models
from optimizer.errors import UsageError
from optimizer.options import (
    AccuracyOptions,
    BenchOptions,
    BuildOptions,
    EncodingOptions,
    OptionInfo,
    Options,
    QuantizeOptions,
    ValidateOptions,
    check_engine,
    options_of,
)
from optimizer.recipe import BuildSection, MeasureSection, load_recipe, parse_recipe
from optimizer.units import (
    format_bytes,
    format_duration,
    format_pp,
    format_profile,
    format_share,
    parse_bytes,
    parse_duration,
    parse_pp,
    parse_profile,
    parse_share,
)
from tests.cli.conftest import Command, resnet_opt

__all__ = ["resnet_opt"]

VERBS = sorted(name for name in vars(models) if name.endswith("Options") and name != "Options")
FINITE = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


# --- values with units ---------------------------------------------------------------------------


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_durations_round_trip(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-15)


@given(st.floats(min_value=0, max_value=100))
def test_percentage_points_round_trip(points: float) -> None:
    assert parse_pp(format_pp(points)) == points


@given(st.floats(min_value=0, max_value=1))
def test_shares_round_trip(share: float) -> None:
    assert parse_share(format_share(share)) == share


@given(st.integers(min_value=1, max_value=2**50))
def test_bytes_round_trip(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.lists(st.integers(min_value=1, max_value=512), min_size=3, max_size=3).map(sorted))
def test_profiles_round_trip(sizes: list[int]) -> None:
    least, best, most = sizes
    assert parse_profile(format_profile((least, best, most))) == (least, best, most)


def test_values_are_written_in_readable_units() -> None:
    assert format_duration(1800) == "30min"
    assert format_duration(0.015) == "15ms"
    assert format_duration(7.3) == "7.3s"
    assert format_bytes(4 << 30) == "4GiB"
    assert format_share(0.95) == "95%"


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_every_option_has_a_description(name: str) -> None:
    model = getattr(models, name)
    for option, field, panel in model.declared():
        assert field.description, option
        assert field.description.endswith("."), (option, field.description)
        assert panel


@pytest.mark.parametrize("name", VERBS)
def test_an_option_is_declared_in_only_one_class(name: str) -> None:
    """No class overrides an option that it inherits."""
    model = getattr(models, name)
    owners: dict[str, list[str]] = {}
    for owner in model.__mro__:
        for option in inspect.get_annotations(owner):
            if option in model.model_fields:
                owners.setdefault(option, []).append(owner.__name__)
    assert {option: names for option, names in owners.items() if len(names) > 1} == {}


def test_written_options_can_be_parsed() -> None:
    given = {
        "precision": "int8", "profile": ["1:8:32", "2:2:2"], "workspace": "4GiB", "keep": ["a", "b"],
        "fixed_batch": "none", "provider_options": {"use_tf32": "1"}, "provider": "cuda",
    }  # fmt: skip
    options = BuildOptions.parse(given)
    assert options.as_given() == given
    assert BuildOptions.parse(options.written()) == options
    assert (options.workspace, options.fixed_batch) == (4 << 30, ())


def test_lists_are_given_as_text_or_lists() -> None:
    for value in ("1,8", [1, 8], ["1", "8"], ["1,8"]):
        assert BenchOptions.parse({"batch": value}).batch == (1, 8)
    assert BuildOptions.parse({"profile": (1, 8, 32)}).profile == ((1, 8, 32),)


def test_keywords_override_the_model() -> None:
    base = BuildOptions(precision="int8", threads=2)
    assert BuildOptions.of(base, {"threads": 1}) == BuildOptions(precision="int8", threads=1)
    assert BuildOptions.of(base, {"threads": None}) == base
    group = EncodingOptions(method="minmax", keep=("fc",))
    built = BuildOptions.of(group, {"precision": "int8"})
    assert (built.method, built.keep, built.precision) == ("minmax", ("fc",), "int8")
    with pytest.raises(UsageError, match="must be BuildOptions, not BenchOptions"):
        BuildOptions.of(BenchOptions(), {})


def test_a_wrong_value_is_a_usage_error_in_the_constructor_too() -> None:
    with pytest.raises(UsageError, match="precision: 'int3' is not a choice"):
        BuildOptions(precision="int3")
    with pytest.raises(UsageError, match=r"build\.0\.profile\.0: .*is not ordered"):
        parse_recipe({"model": "m", "build": [{"profile": "8:4:2"}]})


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BuildOptions().precision = "int8"  # type: ignore[misc]


def test_options_of_one_engine_are_refused_for_others() -> None:
    options = BuildOptions.parse({"workspace": "1GiB"})
    check_engine(options, ["tensorrt"])
    check_engine(options, ["auto"])
    check_engine(options, ["openvino", "tensorrt-rtx"])
    check_engine(BuildOptions.parse({"tf32": False}), ["openvino"])  # equal to the default
    with pytest.raises(UsageError, match=r"--workspace is for tensorrt, .* not for openvino") as e:
        check_engine(options, ["openvino"])
    assert e.value.hint == "leave it out, or --engine tensorrt"


def test_engine_specific_options_go_only_to_their_engines() -> None:
    values: dict[str, Any] = {
        "provider": "cuda", "provider_options": {"a": "1"}, "fixed_batch": "1", "target": "sm86",
        "profile": "1:1:1", "workspace": "1GiB", "opt_level": 3, "timing_cache": "t",
        "hardware_compatibility": "ampere-plus", "specialization": "lazy", "runtime_cache": "r",
    }  # fmt: skip
    for name, field in BuildOptions.model_fields.items():
        engines = OptionInfo.of(field).engines
        if not engines:
            continue
        options = BuildOptions.parse({name: values.get(name, True)})
        for engine in ("openvino", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx"):
            assert (name in options_of(options, engine)) == (engine in engines), (name, engine)
            if engine in engines:
                check_engine(options, [engine])
            else:
                with pytest.raises(UsageError):
                    check_engine(options, [engine])


def test_of_kind_copies_shared_options() -> None:
    build = BuildOptions.parse({"keep": "fc", "max_drop": "2pp", "workspace": "1GiB"})
    explicit = build.of_kind(QuantizeOptions, target="tensorrt")
    assert (explicit.keep, explicit.max_drop, explicit.target) == (("fc",), 2.0, "tensorrt")


# --- the same message in Python, YAML and on the command line ----------------------------------------

INVALID = [
    ("build", {"precision": "int3"}, "precision: 'int3' is not a choice"),
    ("build", {"workspace": "4"}, "workspace: '4' has no unit of bytes"),
    ("build", {"opt_level": "9"}, "opt_level: 9 is too large"),
    ("build", {"threads": "two"}, "threads: 'two' is not a whole number"),
    ("build", {"keep_layers": "a"}, "keep_layers"),
    ("validate", {"max_drop": "1"}, "max_drop: '1' has no unit pp"),
    ("validate", {"limit": "0"}, "limit: 0 is too small"),
    ("bench", {"batch": "1,x"}, "batch: 'x' is not a positive whole number"),
    ("bench", {"duration": "soon"}, "duration: cannot read 'soon'"),
    ("bench", {"latency_percentile": "p42"}, "latency_percentile: 'p42' is not a choice"),
]


@pytest.mark.parametrize(("section", "given", "message"), INVALID)
def test_a_mistake_gives_the_same_message_everywhere(
    resnet_opt: Command, tmp_path: Path, section: str, given: dict[str, str], message: str
) -> None:
    kinds: dict[str, type[Options]] = {
        "build": BuildOptions, "validate": ValidateOptions, "bench": BenchOptions,
    }  # fmt: skip
    needed = {"validate": {"reference": "r", "data": "d"}}.get(section, {})
    with pytest.raises(UsageError) as in_python:
        kinds[section].of(None, {**needed, **given})
    assert message in in_python.value.message

    recipe = tmp_path / "r.yaml"
    data = {"data": "d"} if section == "validate" else {}
    recipe.write_text(yaml.safe_dump({"model": "m", section: {**data, **given}}))
    with pytest.raises(UsageError) as in_yaml:
        load_recipe(recipe)
    assert in_yaml.value.message.endswith(in_python.value.message.partition(": ")[2])

    ((name, value),) = given.items()
    command = {
        "build": ["build", "m.onnx", "-o", "m"],
        "validate": ["validate", "m", "--reference", "r", "--data", "d"],
        "bench": ["bench", "m"],
    }[section]
    completed = resnet_opt(*command, f"--{name.replace('_', '-')}", value)
    assert completed.code == 2
    if name in kinds[section].model_fields:
        assert completed.errors == [f"error: {in_python.value.message}"]
        assert in_python.value.hint is None or in_python.value.hint in completed.err
    else:
        assert name.replace("_", "-") in completed.errors[0]


def test_a_similar_name_is_suggested(resnet_opt: Command) -> None:
    with pytest.raises(UsageError) as error:
        BuildOptions.of(None, {"presicion": "int8"})
    assert error.value.hint == "did you mean precision?"
    completed = resnet_opt("build", "m.onnx", "-o", "m", "--presicion", "int8")
    assert "did you mean --precision?" in completed.err
    assert "did you mean build?" in resnet_opt("biuld").err


def test_a_required_option_is_named() -> None:
    with pytest.raises(UsageError, match="data: is required"):
        AccuracyOptions.of(None, {})
    with pytest.raises(UsageError, match="is required"):
        optimizer.validate("m.blob")


def test_sections_are_the_options_of_their_verbs() -> None:
    """A recipe key is the option of the verb, if there is one."""
    assert set(MeasureSection.model_fields) <= set(BenchOptions.model_fields)
    assert set(BuildSection.model_fields) <= set(BuildOptions.model_fields)
    for name in BuildSection.model_fields:
        if name not in {"precision", "engine"}:
            key, flag = (m.model_fields[name] for m in (BuildSection, BuildOptions))
            assert (key.description, key.default) == (flag.description, flag.default), name
