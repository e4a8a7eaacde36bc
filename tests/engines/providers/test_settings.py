"""Providers and their options: read, checked and translated."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from optimizer.engines.building import check_buildable
from optimizer.engines.onnxruntime import OnnxRuntime
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.providers import PROVIDERS, lowering_target, read_choice
from optimizer.engines.providers.settings import with_build_settings, with_cache
from optimizer.engines.providers.status import library_of
from optimizer.errors import UnsupportedPrecision, UsageError
from optimizer.targets.rules import rules_for

SHAPE = (None, 3, 32, 32)


def choose(provider: str, **options: str) -> dict[str, object]:
    return {"provider": provider, "provider_options": options}


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "nv-tensorrt-rtx"])
def test_every_option_is_known_to_the_installed_library(name: str) -> None:
    provider = PROVIDERS[name]
    path = library_of(provider)
    if path is None:
        pytest.skip(f"{provider.shared_object} is not installed")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        absent = [option for option in provider.options if text.find(option.encode()) < 0]
    assert not absent


def test_the_default_is_the_cpu() -> None:
    assert read_choice({}).provider is PROVIDERS["cpu"]
    assert not read_choice({"provider": None}).provider.on_gpu


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (choose("rocm"), "no provider 'rocm'", "one of cpu, cuda, tensorrt, nv-tensorrt-rtx"),
        (choose("cuda", use_tf3="1"), "no option 'use_tf3'", "one of use_tf32"),
        (choose("cpu", use_tf32="1"), "no option 'use_tf32'", "remove it"),
        (choose("tensorrt", trt_int8_enable="1"), "the graph defines the precision", "remove it"),
        (choose("cuda", device_id="1"), "--device cuda:1", "remove it"),
        (choose("cuda", user_compute_stream="1"), "no meaning here", "remove it"),
    ],
)
def test_unknown_and_unsupported_options_are_refused(
    options: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_choice(options)
    assert str(caught.value.hint).startswith(hint)


def test_the_provider_determines_the_quantization_target() -> None:
    assert lowering_target("openvino", None) == "openvino"
    assert lowering_target("onnxruntime", "cpu") == "onnxruntime"
    for name in ("tensorrt", "nv-tensorrt-rtx"):
        rules = rules_for(lowering_target("onnxruntime", name))
        assert (rules.relu_dtype, rules.signed_dtype, rules.add_inputs) == ("s8", "s8", "residual")
    with pytest.raises(UsageError, match="an option of ONNX Runtime, not of openvino"):
        lowering_target("openvino", "cuda")


def test_fp32_is_not_tf32_unless_requested() -> None:
    settings = BuildSettings(precision="fp32")
    adapted = with_build_settings(read_choice(choose("cuda")), settings, "images", SHAPE)
    assert adapted.options == {"use_tf32": "0"}
    requested = read_choice(choose("cuda", use_tf32="1"))
    assert with_build_settings(requested, settings, "images", SHAPE).options == {"use_tf32": "1"}


def test_a_provider_that_compiles_gets_the_shapes() -> None:
    choice = read_choice(choose("tensorrt", trt_sparsity_enable="1"))
    settings = BuildSettings(
        precision="fp16", profile=(1, 4, 16), workspace_bytes=1 << 30, opt_level=4
    )
    assert with_build_settings(choice, settings, "images", SHAPE).options == {
        "trt_profile_min_shapes": "images:1x3x32x32",
        "trt_profile_opt_shapes": "images:4x3x32x32",
        "trt_profile_max_shapes": "images:16x3x32x32",
        "trt_max_workspace_size": str(1 << 30),
        "trt_builder_optimization_level": "4",
        "trt_sparsity_enable": "1",
    }
    fixed = with_build_settings(choice, BuildSettings(precision="fp16"), "images", (8, 3, 32, 32))
    assert fixed.options == {"trt_sparsity_enable": "1"}


def test_a_dynamic_image_size_cannot_be_compiled() -> None:
    choice = read_choice(choose("nv-tensorrt-rtx"))
    with pytest.raises(UsageError, match="needs a fixed image size"):
        with_build_settings(
            choice, BuildSettings(precision="fp16"), "images", (None, 3, None, None)
        )


@pytest.mark.parametrize(
    ("provider", "settings", "message"),
    [
        ("cuda", {"opt_level": 3}, "provider cuda has no --opt-level"),
        ("cuda", {"workspace_bytes": 1}, "provider cuda has no --workspace"),
        ("cuda", {"profile": (1, 2, 4)}, "provider cuda has no --profile"),
        ("tensorrt", {"targets": ("sm86",)}, "provider tensorrt has no --target"),
        ("tensorrt", {"profile": (4, 2, 1)}, "profile 4:2:1 is not in order"),
        (
            "tensorrt",
            {"timing_cache": Path("cache")},
            "--timing-cache does not apply to provider tensorrt",
        ),
        ("nv-tensorrt-rtx", {"opt_level": 3}, "provider nv-tensorrt-rtx has no --opt-level"),
    ],
)
def test_unsupported_settings_are_refused_before_libraries_are_searched(
    provider: str, settings: dict[str, object], message: str
) -> None:
    requested = BuildSettings(precision="fp32", options={"provider": provider}, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        OnnxRuntime().engine_settings(requested)


def test_a_precision_that_a_provider_does_not_compute_is_refused() -> None:
    settings = BuildSettings(precision="int8", options={"provider": "cuda"})
    with pytest.raises(UnsupportedPrecision, match="FP32 and FP16 only") as caught:
        OnnxRuntime().engine_settings(settings)
    assert "--provider tensorrt" in str(caught.value.hint)


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_an_option_of_another_backend_is_refused(provider: str) -> None:
    settings = BuildSettings(precision="fp32", options={"provider": provider, "tf32": True})
    with pytest.raises(UsageError, match=r"--tf32 is for tensorrt.*, not for onnxruntime"):
        check_buildable(OnnxRuntime(), settings)


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("tensorrt", {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "FOLDER"}),
        ("nv-tensorrt-rtx", {"nv_runtime_cache_path": "FOLDER"}),
        ("cuda", {}),
        ("cpu", {}),
    ],
)
def test_a_provider_that_compiles_caches_its_engines(
    provider: str, expected: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "m.onnx"
    adapted = with_cache(read_choice(choose(provider)), folder)
    assert adapted.options == {k: v.replace("FOLDER", str(folder)) for k, v in expected.items()}
    assert folder.is_dir() == bool(expected)


def test_the_users_cache_options_take_precedence(tmp_path: Path) -> None:
    options = choose("tensorrt", trt_engine_cache_enable="0")
    assert with_cache(read_choice(options), tmp_path / "x").options == {
        "trt_engine_cache_enable": "0"
    }
