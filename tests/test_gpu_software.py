"""Drivers for several CUDA versions, and incomplete driver installations."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pynvml
import pytest

import optimizer.gpu_software as software
from optimizer.cli.app import run_command_line
from optimizer.gpu_software import Installed, Machine, installed_libraries, judge, read_machine

ROOT = Path(__file__).parent.parent
CUDA13 = [
    Installed(name="torch", version="2.14.1", cuda=13),
    Installed(name="onnxruntime-gpu", version="1.31.1", cuda=13),
    Installed(name="cuda-python", version="13.4.4", cuda=13),
    Installed(name="tensorrt", version="11.4.0.106", cuda=13),
]
CUDA12 = [one.model_copy(update={"cuda": 12}) for one in CUDA13]


def with_driver(driver: str, cuda: int, **changes: Any) -> Machine:
    return Machine(**{"driver": driver, "cuda": cuda, "gpus": 1, "loads": True, **changes})


@pytest.mark.parametrize(
    ("driver", "cuda", "supported"),
    [("535.183.01", 12020, "12.2"), ("550.54.15", 12040, "12.4"), ("570.86.15", 12080, "12.8")],
)
def test_cuda_12_driver_with_cuda_13_libraries(driver: str, cuda: int, supported: str) -> None:
    result = judge(with_driver(driver, cuda), CUDA13)
    assert result.fitting == []
    assert [one.name for one in result.too_new] == [one.name for one in CUDA13]
    assert result.answer.startswith(
        f"driver {driver} supports CUDA {supported}; installed for CUDA 13:"
    )
    assert result.hint == (
        "update the driver to 580.65.06 or later, "
        'or pip install "resnet-opt[cuda12,tensorrt-cuda12]"'
    )
    assert judge(with_driver(driver, cuda), CUDA12).hint is None


def test_cuda_13_driver_supports_both() -> None:
    for installed in (CUDA13, CUDA12):
        result = judge(with_driver("580.65.06", 13000), installed)
        assert result.hint is None
        assert result.fitting == installed
        assert (
            "driver 580.65.06 supports CUDA 13.0 and all installed GPU libraries" in result.answer
        )


def test_some_libraries_are_supported() -> None:
    mixed = [CUDA12[0], CUDA13[2]]
    result = judge(with_driver("550.54.15", 12040), mixed)
    assert [one.name for one in result.fitting] == ["torch"]
    assert [one.name for one in result.too_new] == ["cuda-python"]
    assert str(result.hint).endswith('pip install "resnet-opt[cuda12]"')


def test_a_driver_that_is_too_old_for_everything() -> None:
    result = judge(with_driver("470.256.02", 11040), CUDA13)
    assert result.hint == "update the driver to 580.65.06 or later"
    result = judge(with_driver("470.256.02", 11040), CUDA12)
    assert result.hint == "update the driver to 525.60.13 or later"


def test_nothing_is_installed_for_the_gpu() -> None:
    assert judge(with_driver("580.65.06", 13000), []).hint == 'pip install "resnet-opt[cuda]"'
    assert judge(with_driver("550.54.15", 12040), []).hint == 'pip install "resnet-opt[cuda12]"'


def test_no_driver() -> None:
    result = judge(Machine(), CUDA13)
    assert (result.driver, result.cuda, result.kind) == (None, None, "desktop or server")
    assert result.answer == "no NVIDIA driver"
    assert result.lines()[1].startswith("-> run it on a machine")


def test_wsl() -> None:
    kernel = "5.15.153.1-microsoft-standard-WSL2"
    none = judge(Machine(kernel=kernel), CUDA13)
    assert none.kind == "WSL"
    assert "in Windows" in str(none.hint)
    old = judge(with_driver("552.44", 12040, kernel=kernel), CUDA13)
    assert "update the driver to 580.65.06 or later in Windows" in str(old.hint)
    assert any("clocks and energy are not available" in note for note in old.notes)


def test_jetson() -> None:
    orin = judge(
        with_driver("540.4.0", 12060, tegra=True, architecture="aarch64", loads=True), CUDA13
    )
    assert orin.kind == "Jetson"
    assert "TensorRT 10.3, which is too old" in orin.answer
    assert "JetPack 7" in str(orin.hint)
    unknown = judge(Machine(tegra=True, loads=True), CUDA13)
    assert "of an unknown version" in unknown.answer
    thor = judge(with_driver("580.00", 13000, tegra=True, architecture="aarch64"), CUDA13)
    assert thor.hint is None


def test_mig() -> None:
    result = judge(with_driver("580.65.06", 13000, divided=(0, 2)), CUDA13)
    assert result.hint is None
    (note,) = result.notes
    assert note.startswith("GPU 0, 2 is divided into MIG slices")
    assert "CUDA_VISIBLE_DEVICES=MIG-" in note


def test_a_container_without_the_driver() -> None:
    result = judge(Machine(container=True, devices=True), CUDA13)
    assert "has the device files" in result.answer
    assert "docker run --gpus all" in str(result.hint)


def test_a_container_without_libcuda() -> None:
    result = judge(with_driver("580.65.06", 13000, container=True, loads=False), CUDA13)
    assert "not its libcuda" in result.answer
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in str(result.hint)
    bare = judge(with_driver("580.65.06", 13000, loads=False), CUDA13)
    assert "libcuda.so.1 cannot be loaded" in bare.answer


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_every_gpu_is_hidden(value: str) -> None:
    result = judge(with_driver("580.65.06", 13000, visible=value), CUDA13)
    assert "hides every GPU" in result.answer
    assert result.hint == "unset CUDA_VISIBLE_DEVICES"
    assert judge(with_driver("580.65.06", 13000, visible="1"), CUDA13).hint is None


# --- reading the machine ------------------------------------------------------------------------------------


def test_the_machine_is_read_from_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mig(handle: str) -> tuple[int, int]:
        if handle == "handle 0":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return (1, 1)

    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "550.54.15",
        "nvmlSystemGetCudaDriverVersion": lambda: 12040,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
        "nvmlDeviceGetMigMode": mig,
    }
    for name, function in functions.items():
        monkeypatch.setattr(pynvml, name, function)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    (tmp_path / ".dockerenv").touch()
    monkeypatch.setattr(software, "_libcuda_loads", lambda: True)
    result = read_machine(tmp_path, {"CUDA_VISIBLE_DEVICES": ""})
    assert (result.driver, result.cuda, result.gpus) == ("550.54.15", 12040, 2)
    assert result.divided == (1,)
    assert result.devices
    assert result.container
    assert result.visible == ""
    assert not result.tegra
    assert read_machine(tmp_path, {}).visible is None


@dataclass(frozen=True, kw_only=True)
class Faked:
    """What NVML, the loader and the files of a machine answer; no driver if ``driver`` is ``None``."""

    driver: str | None
    cuda: int = 0
    files: tuple[str, ...] = ()
    kernel: str = "6.8.0-generic"
    loads: bool = True
    slices: int | None = None
    visible: str | None = None


@pytest.mark.parametrize(
    ("machine", "answer", "hint"),
    [
        (Faked(driver="535.183.01", cuda=12020), "supports CUDA 12.2; installed for CUDA 13", "cuda12"),
        (Faked(driver="550.54.15", cuda=12040), "supports CUDA 12.4; installed for CUDA 13", "cuda12"),
        (Faked(driver="570.86.15", cuda=12080), "supports CUDA 12.8; installed for CUDA 13", "cuda12"),
        (Faked(driver="580.65.06", cuda=13000), "supports CUDA 13.0 and all installed", None),
        (Faked(driver="580.65.06", cuda=13000, slices=1), "supports CUDA 13.0 and all", None),
        (Faked(driver="580.65.06", cuda=13000, visible=""), "hides every GPU", "unset CUDA_VISIBLE"),
        (Faked(driver=None), "no NVIDIA driver", "machine with an NVIDIA GPU"),
        (
            Faked(driver="540.4.0", cuda=12060, files=("etc/nv_tegra_release",), kernel="5.15.148-tegra"),
            "a Jetson with CUDA 12.6", "JetPack 7",
        ),
        (
            Faked(driver="552.44", cuda=12040, kernel="5.15.153.1-microsoft-standard-WSL2"),
            "supports CUDA 12.4", "580.65.06 or later in Windows",
        ),
        (
            Faked(driver=None, kernel="5.15.153.1-microsoft-standard-WSL2", loads=False),
            "no NVIDIA driver in WSL", "in Windows",
        ),
        (
            Faked(driver="580.65.06", cuda=13000, files=(".dockerenv", "dev/nvidiactl"), loads=False),
            "not its libcuda", "NVIDIA_DRIVER_CAPABILITIES",
        ),
        (
            Faked(driver=None, files=("run/.containerenv", "dev/nvidia0"), loads=False),
            "not the driver's libraries", "docker run --gpus all",
        ),
    ],
)  # fmt: skip
def test_doctor_gives_one_answer(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    machine: Faked,
    answer: str,
    hint: str | None,
) -> None:
    """From NVML's answers to what `doctor` prints."""

    def begin() -> None:
        if machine.driver is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def mig(_: str) -> tuple[int, int]:
        if machine.slices is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return (machine.slices, machine.slices)

    def refuse(*_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    functions = {
        "nvmlInit": begin,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: machine.driver,
        "nvmlSystemGetCudaDriverVersion": lambda: machine.cuda,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
        "nvmlDeviceGetMigMode": mig,
        "nvmlDeviceGetName": lambda _: "NVIDIA Test",
        "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
        "nvmlDeviceGetMemoryInfo": refuse,
        "nvmlDeviceGetPciInfo": refuse,
    }
    for name, function in functions.items():
        monkeypatch.setattr(pynvml, name, function)
    for name in machine.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    variables = {} if machine.visible is None else {"CUDA_VISIBLE_DEVICES": machine.visible}
    monkeypatch.setattr(software, "_libcuda_loads", lambda: machine.loads)
    monkeypatch.setattr(platform, "release", lambda: machine.kernel)
    monkeypatch.setattr(software, "installed_libraries", lambda: CUDA13)
    read = software.read_machine
    monkeypatch.setattr(software, "read_machine", lambda: read(tmp_path, variables))
    assert run_command_line(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["gpu_software"]
    assert answer in told["answer"]
    assert hint in told["hint"] if hint is not None else told["hint"] is None
    assert bool(told["notes"]) == (machine.slices == 1 or machine.driver == "552.44")


def test_installed_libraries_have_their_cuda_version() -> None:
    """The default set is for CUDA 13; a CPU-only torch has no CUDA version."""
    result = {one.name: one for one in installed_libraries()}
    assert result["cuda-python"].cuda == int(metadata.version("cuda-python").partition(".")[0])
    for name in ("onnxruntime-gpu", "torch"):
        if name in result:
            assert result[name].version == metadata.version(name)
            assert result[name].cuda in {12, 13}


@pytest.mark.parametrize(
    ("requires", "cuda"),
    [
        (['nvidia-cuda-runtime-cu12==12.8.90; platform_system == "Linux"'], 12),
        (["cuda-toolkit[cublas,cudart]==13.0.3", "nvidia-cudnn-cu13==9.24.0.43"], 13),
        (['nvidia-cuda-runtime~=13.0; extra == "cuda"'], 13),
        (["numpy"], None),
        ([], None),
    ],
)
def test_cuda_version_from_requirements(requires: list[str], cuda: int | None) -> None:
    class Distribution:
        """A distribution with these requirements."""

        version = "1.0"

    Distribution.requires = requires  # type: ignore[attr-defined]
    assert software._cuda_from_requirements(Distribution()) == cuda  # type: ignore[arg-type]


def test_every_gpu_test_is_in_the_suite() -> None:
    """``make test-gpu`` lists its files, to run the cheapest first."""
    makefile = (ROOT / "Makefile").read_text()
    named = next(x for x in makefile.splitlines() if x.startswith("GPU_TESTS")).split()[2:]
    marked = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text() and path != Path(__file__)
    ]
    assert marked
    assert [path for path in marked if not path.startswith(tuple(named))] == []


# --- the extras resolve ----------------------------------------------------------------------------


def requirements(*extras: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        *project["dependencies"],
        *(r for e in extras for r in project["optional-dependencies"][e]),
    ]


def resolve(tmp_path: Path, *extras: str) -> dict[str, str]:
    """What pip would install into an empty environment, by name."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    outcome = subprocess.run(
        [*command, "--prefer-binary", "--report", str(report), *requirements(*extras)],
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    if outcome.returncode != 0:
        lines = [x for x in outcome.stderr.splitlines() if x.startswith(("ERROR", "error", "╰─>"))]
        conflict = any("conflicting" in line or "ResolutionImpossible" in line for line in lines)
        assert not conflict, outcome.stderr[-2000:]
        pytest.skip(f"pip cannot resolve it here: {' '.join(lines) or 'no reason given'}")
    installed = json.loads(report.read_text())["install"]
    return {
        one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"]
        for one in installed
    }


def resolve_by_uv(*extras: str) -> dict[str, str]:
    """The same by uv.

    TensorRT's libraries are placeholders on the package index: to tell pip what they depend on, they
    fetch the wheel from NVIDIA's index. uv reads it from the source distribution, or from
    ``pyproject.toml``.
    """
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    if not uv.is_file():
        pytest.skip("uv is not installed")
    command = [
        str(uv),
        "pip",
        "compile",
        "--quiet",
        "--no-annotate",
        "--no-header",
        "pyproject.toml",
    ]
    outcome = subprocess.run(
        [*command, *(f"--extra={extra}" for extra in extras)],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
    )  # fmt: skip
    if outcome.returncode != 0:
        assert "No solution found" not in outcome.stderr, outcome.stderr[-2000:]
        pytest.skip(f"uv cannot reach an index here: {outcome.stderr.strip().splitlines()[0]}")
    lines = [line.partition(";")[0].strip() for line in outcome.stdout.splitlines()]
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.long
@pytest.mark.parametrize(
    ("extras", "cuda"),
    [
        ("cuda", 13),
        ("cuda,tensorrt-rtx", 13),
        ("cuda12", 12),
        ("cuda12,tensorrt-rtx-cuda12", 12),
    ],
)
def test_extras_resolve_to_one_cuda_version(tmp_path: Path, extras: str, cuda: int) -> None:
    check_one_cuda(resolve(tmp_path, *extras.split(",")), cuda)


@pytest.mark.long
@pytest.mark.parametrize(
    ("extras", "cuda", "tensorrt"),
    [
        ("cuda,tensorrt", 13, 11),
        ("cuda,tensorrt10", 13, 10),
        ("cuda12,tensorrt-cuda12", 12, 11),
        ("cuda12,tensorrt10-cuda12", 12, 10),
    ],
)
def test_extras_with_tensorrt_resolve(extras: str, cuda: int, tensorrt: int) -> None:
    result = resolve_by_uv(*extras.split(","))
    check_one_cuda(result, cuda)
    for part in ("", "-bindings", "-libs"):
        assert result[f"tensorrt-cu{cuda}{part}"].startswith(f"{tensorrt}.")


def check_one_cuda(result: dict[str, str], cuda: int) -> None:
    assert result["cuda-python"].startswith(f"{cuda}.")
    assert result["cuda-bindings"].startswith(f"{cuda}.")
    other = f"-cu{25 - cuda}"
    assert not [name for name in result if name.endswith(other)], "two CUDA versions in one set"
    assert f"nvidia-cudnn-cu{cuda}" in result
