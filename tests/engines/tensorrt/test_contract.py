"""Every TensorRT name that this package uses exists in every supported version.

The names are collected from the source, so new uses are checked automatically. The Python bindings
are real. The library below them, which cannot be installed here, is replaced by shared objects with
the symbols that the bindings link, which do nothing. This checks names and keywords, not behaviour.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import astuple
from pathlib import Path

import pytest

import optimizer.engines.tensorrt as package
from optimizer.engines.tensorrt.library import TENSORRT_RTX, find

from .api_uses import LOOKUP, Use, uses_in, uses_in_files

FOLDER = Path(package.__file__).parent
RTX_ONLY = FOLDER / "rtx.py"
COMMON = uses_in_files([path for path in sorted(FOLDER.glob("*.py")) if path != RTX_ONLY])
RTX = uses_in_files([RTX_ONLY]) | {Use("", "ComputeCapability")}
# (distribution, version): the oldest, the newest 10 and the newest 11 that are supported.
BINDINGS = [
    ("tensorrt_cu12_bindings", "10.12.0.36"),
    ("tensorrt_cu12_bindings", "10.16.1.11"),
    ("tensorrt_cu13_bindings", "11.4.0.106"),
]
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
)


def look_up(uses: set[Use], module: str, environment: dict[str, str] | None = None) -> list[str]:
    """The uses that a module lacks, looked up in a separate process."""
    outcome = subprocess.run(
        [sys.executable, "-c", LOOKUP, module],
        input=json.dumps([astuple(use) for use in sorted(uses)]),
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stderr
    missing = json.loads(outcome.stdout)["missing"]
    return [str(Use(owner, name, tuple(keywords))) for owner, name, keywords in missing]


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, str]]:
    """Environments in which each version of the bindings can be imported."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, which compiles the shared objects under the bindings")
    folder = tmp_path_factory.mktemp("bindings")
    environments = {}
    for name, version in BINDINGS:
        target = folder / version
        wheel = download(f"{name}=={version}", target)
        zipfile.ZipFile(wheel).extractall(target)
        stubs = compile_stubs(target / "stubs", version.split(".")[0])
        environments[name, version] = {"PYTHONPATH": str(target), "LD_LIBRARY_PATH": str(stubs)}
    return environments


def download(requirement: str, folder: Path) -> Path:
    """The wheel of a distribution, without its requirements."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    outcome = subprocess.run(
        [*command, "--disable-pip-version-check", "-d", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if outcome.returncode != 0:
        lines = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"pip cannot download {requirement}: {(lines or ['no reason given'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def compile_stubs(folder: Path, major: str) -> Path:
    """Shared objects with the names and symbols that the bindings link; all functions return null."""
    folder.mkdir()
    source = folder / "stub.c"
    source.write_text("".join(f"void* {symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        soname = f"{library}.so.{major}"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", folder / soname, source],
            check=True,
        )
    return folder


def test_collector_finds_uses() -> None:
    """A sample of the expected uses, covering every way to reach a name."""
    assert {
        Use("", "OnnxParser"),
        Use("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        Use("BuilderFlag", "TF32"),
        Use("IBuilderConfig", "profiling_verbosity"),
        Use("IBuilderConfig", "set_timing_cache"),
        Use("Builder", "build_serialized_network"),
        Use("IOptimizationProfile", "set_shape"),
        Use("OnnxParser", "parse_from_file"),
        Use("ParserError", "node_name"),
        Use("ITensor", "name"),
        Use("Runtime", "deserialize_cuda_engine"),
        Use("ICudaEngine", "get_tensor_profile_shape"),
        Use("IExecutionContext", "execute_async_v3"),
        Use("IExecutionContext", "set_tensor_address"),
        Use("IExecutionContext", "set_optimization_profile_async"),
        Use("IExecutionContext", "nvtx_verbosity"),
        Use("EngineInspector", "execution_context"),
        Use("ExecutionContextAllocationStrategy", "USER_MANAGED"),
        Use("ProfilingVerbosity", "LAYER_NAMES_ONLY"),
        Use("Runtime", "engine_host_code_allowed"),
        Use("ICudaEngine", "refittable"),
        Use("Refitter", "refit_cuda_engine"),
        Use("EngineInspector", "get_engine_information"),
        Use("IProgressMonitor", "step_complete"),
        Use("IProfiler", "report_layer_time"),
        Use("ILogger", "log"),
        Use("OnnxParserRefitter", "refit_from_file"),
        Use("ISerializationConfig", "clear_flag"),
        Use("ITimingCache", "combine"),
    } <= COMMON
    assert {
        Use("IBuilderConfig", "set_compute_capability"),
        Use("IRuntimeConfig", "cuda_graph_strategy"),
        Use("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
        Use("DynamicShapesKernelSpecializationStrategy", "EAGER"),
        Use("IRuntimeCache", "deserialize"),
    } <= RTX
    assert not any("FP16" in use.name or "INT8" in use.name for use in COMMON | RTX)


def test_tensorrt_rtx_has_every_name() -> None:
    installed = find(TENSORRT_RTX)
    if installed.module is None:
        pytest.skip(str(installed.fault))
    assert look_up(COMMON | RTX, "tensorrt_rtx") == []


@pytest.mark.slow
@pytest.mark.parametrize("version", BINDINGS, ids=[version for _, version in BINDINGS])
def test_tensorrt_has_every_name(
    bindings: dict[tuple[str, str], dict[str, str]], version: tuple[str, str]
) -> None:
    assert look_up(COMMON, "tensorrt_bindings", bindings[version]) == []


@pytest.mark.slow
def test_names_only_in_newer_versions(
    bindings: dict[tuple[str, str], dict[str, str]],
) -> None:
    """`refit_flag` looks for it: 10.12 does not have it, the others do."""
    flag = {Use("SerializationFlag", "INCLUDE_REFIT")}
    lacking = [bool(look_up(flag, "tensorrt_bindings", bindings[key])) for key in BINDINGS]
    assert lacking == [True, False, False]


OLD = """
def build(trt, network):
    builder = trt.Builder(trt.Logger())
    config = builder.create_builder_config()
    if builder.platform_has_fast_fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    config.int8_calibrator = trt.IInt8EntropyCalibrator2()
    config.set_timing_cache(cache=None, ignore_mismatches=False)
    return builder.build_serialized_network(network, config)
"""


@pytest.mark.slow
def test_names_removed_in_11_are_reported(bindings: dict[tuple[str, str], dict[str, str]]) -> None:
    ten, eleven = (bindings[key] for key in (BINDINGS[1], BINDINGS[2]))
    assert look_up(uses_in(OLD), "tensorrt_bindings", ten) == ["IBuilderConfig.set_timing_cache"]
    assert look_up(uses_in(OLD), "tensorrt_bindings", eleven) == [
        "IInt8EntropyCalibrator2",
        "Builder.platform_has_fast_fp16",
        "BuilderFlag.FP16",
        "IBuilderConfig.int8_calibrator",
        "IBuilderConfig.set_timing_cache",
    ]


START = """
import sys, tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from optimizer.engines.tensorrt.library import TENSORRT, load
from optimizer.engines.tensorrt.log import BuildLog, make_logger, start
from optimizer.engines.tensorrt.monitor import Watch, make_monitor
from optimizer.engines.tensorrt.layer_times import make_profiler
from optimizer.errors import MissingDevice
from optimizer.progress import Silent
trt = load(TENSORRT)
make_monitor(trt, Silent(), "label", Watch())
make_profiler(trt)
try:
    start(TENSORRT, trt.Builder, make_logger(trt, BuildLog()), BuildLog())
except MissingDevice as error:
    print(error.message)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", BINDINGS, ids=[version for _, version in BINDINGS])
def test_library_that_cannot_start(
    bindings: dict[tuple[str, str], dict[str, str]], version: tuple[str, str]
) -> None:
    """The real bindings, when no builder can be created: a machine without a driver."""
    environment = dict(bindings[version])
    environment["PYTHONPATH"] += os.pathsep + str(Path(package.__file__).parents[3])
    outcome = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert outcome.stdout.strip() == "TensorRT could not start: no reason given", outcome.stderr
