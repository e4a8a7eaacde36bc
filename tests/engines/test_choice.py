"""The engine that ``auto`` chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.engines import choice, get_backend
from optimizer.engines.build_settings import settings_of
from optimizer.engines.providers import status
from optimizer.options import BuildOptions
from optimizer.progress import Silent
from optimizer.recipe import RunOptions
from optimizer.targets.hardware import CpuFeatures, cpu_features
from optimizer.verbs.build import _with_engine as with_engine
from optimizer.verbs.job import Job
from optimizer.verbs.run import run_recipe

OLD = replace(cpu_features(), avx2=True, avx512=False, vnni=False, bf16=False)
NEW = replace(cpu_features(), avx2=True, avx512=True, vnni=True, bf16=True)


@pytest.mark.skipif(
    any(get_backend(n).availability().can_run for n in ("tensorrt", "tensorrt-rtx")),
    reason="this machine has a GPU, which comes first",
)
@pytest.mark.parametrize(
    ("cpu", "precision", "engine"),
    [
        (OLD, "fp32", "onnxruntime"),
        (NEW, "fp32", "openvino"),
        (OLD, "int8", "openvino"),
        (NEW, "int8", "openvino"),
        (OLD, "mixed", "openvino"),
        (NEW, "bf16", "openvino"),
        (OLD, "bf16", "tensorrt-rtx"),
        (NEW, "fp16", "tensorrt-rtx"),
    ],
)
def test_auto_chooses_by_precision_and_cpu(
    cpu: CpuFeatures, precision: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "tensorrt-rtx" and not get_backend(engine).availability().can_build:
        pytest.skip("TensorRT-RTX is not installed")
    monkeypatch.setattr(choice, "cpu_features", lambda: cpu)
    assert choice.choose_engine(precision) == (engine, None)


NO_TENSORRT = pytest.mark.skipif(
    any(get_backend(n).availability().can_run for n in ("tensorrt", "tensorrt-rtx")),
    reason="TensorRT comes before ONNX Runtime's CUDA provider",
)


@pytest.fixture
def cuda_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which only ONNX Runtime's CUDA provider computes, such as an H200 without TensorRT."""
    for module in (choice, status):
        monkeypatch.setattr(
            module,
            "provider_status",
            lambda p: status.ProviderStatus(p.name, True, "on NVIDIA H200"),
        )


@NO_TENSORRT
@pytest.mark.usefixtures("cuda_provider")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gpu_without_tensorrt_is_used(precision: str) -> None:
    assert choice.choose_engine(precision) == ("onnxruntime", "cuda")
    options = with_engine(BuildOptions.parse({"precision": precision}))
    assert (options.engine, options.provider) == ("onnxruntime", "cuda")
    assert settings_of(options, None).options == {"provider": "cuda"}


@NO_TENSORRT
@pytest.mark.usefixtures("cuda_provider")
def test_int8_is_not_given_to_a_provider_without_it() -> None:
    assert choice.choose_engine("int8").provider is None


@NO_TENSORRT
@pytest.mark.usefixtures("cuda_provider")
def test_the_main_job_measures_on_that_gpu() -> None:
    builds = run_recipe("resnet18:random:10", RunOptions.parse({})).build
    (on_gpu,) = [section for section in builds if section.provider == "cuda"]
    assert (on_gpu.engine, on_gpu.precision) == (("onnxruntime",), ("fp32", "fp16"))
    assert [section.engine for section in builds if section.provider is None]
    # A precision on the command line replaces the builds by `auto`.
    recipe = run_recipe("resnet18:random:10", RunOptions.parse({"precision": "fp16"}))
    options, label = Job(recipe, Path("runs/none"), None, Silent())._options(
        recipe.build[0], "auto", "fp16", None
    )
    assert (options.provider, label) == ("cuda", "onnxruntime-cuda fp16")
