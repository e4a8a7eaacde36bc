"""Values that NVML does not report are missing: integrated GPUs, MIG slices and device lists."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

import optimizer.engines.cuda as cuda
from optimizer import environment
from optimizer.cli.app import run_command_line
from optimizer.nvml import Nvml
from optimizer.profiling.conditions import EnergyMeter, Gpus, GpuSampler, summarize_readings


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver with a GB10 without memory of its own, an H100, and a GPU that it denies access to."""

    def handle(index: int) -> str:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return f"handle {index}"

    def memory(of: str) -> Any:
        if of == "handle 0":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=80 * 2**30, free=79 * 2**30)

    def refuse(*_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.65.06",
        "nvmlSystemGetCudaDriverVersion": lambda: 13000,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetName": lambda of: "NVIDIA GB10" if of == "handle 0" else "NVIDIA H100",
        "nvmlDeviceGetCudaComputeCapability": lambda of: (12, 1) if of == "handle 0" else (9, 0),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetClockInfo": refuse,
        "nvmlDeviceGetTemperature": lambda *_: 40,
        "nvmlDeviceGetPowerUsage": refuse,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x4,
        "nvmlDeviceGetComputeRunningProcesses": refuse,
        "nvmlDeviceGetTotalEnergyConsumption": refuse,
    }
    for name, function in functions.items():
        monkeypatch.setattr(pynvml, name, function)


@pytest.mark.usefixtures("driver")
def test_denied_values_are_none() -> None:
    with Nvml() as nvml:
        assert [index for index, _ in nvml.handles] == [0, 2]
        first, last = (handle for _, handle in nvml.handles)
        assert (nvml.memory(first), nvml.free_memory(first)) == (None, None)
        assert (nvml.memory(last), nvml.free_memory(last)) == (80 * 2**30, 79 * 2**30)
        assert (nvml.driver(), nvml.cuda()) == ("580.65.06", 13000)
    assert nvml.handles == []
    nvml.close()


@pytest.mark.usefixtures("driver")
def test_doctor_and_fingerprint_handle_missing_values(capsys: pytest.CaptureFixture[str]) -> None:
    by_index = {gpu.index: gpu for gpu in environment.gpus()}
    assert (by_index[0].name, by_index[0].memory_bytes) == ("NVIDIA GB10", None)
    assert (by_index[2].compute_capability, by_index[2].memory_bytes) == ("9.0", 80 * 2**30)
    facts = environment.fingerprint()["gpus"]
    assert [gpu["memory_gib"] for gpu in facts] == [None, 80]
    capsys.readouterr()
    assert run_command_line(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "NVIDIA GB10, sm121\n" in shown
    assert "NVIDIA H100, sm90, 80.0 GiB" in shown
    assert run_command_line(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gpus"][0]["memory_bytes"] is None


@pytest.mark.usefixtures("driver")
def test_measurements_handle_missing_values() -> None:
    readings = Gpus().read()
    assert readings == [
        {"gpu": index, "temperature_c": 40, "held_back_by": ["power cap"]} for index in (0, 2)
    ]
    assert Gpus().memory_bytes(1) is None
    assert Gpus().joules() is None
    EnergyMeter().begin()


@pytest.mark.usefixtures("driver")
def test_gpus_are_read_while_engines_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that drops only under load is recorded, and the time between blocks is not."""
    load = {"is": False, "read_idle": 0}

    def clock(of: str, kind: int) -> int:
        load["read_idle"] += not load["is"]
        return (1200 if load["is"] else 1980) if kind == pynvml.NVML_CLOCK_SM else 2600

    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", clock)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda _: 0x40 if load["is"] else 0x1
    )
    sampler = GpuSampler(Gpus(), every_s=0.01)
    for _ in range(3):
        load["is"] = True
        sampler.resume()
        time.sleep(0.1)
        sampler.pause()
        time.sleep(0.05)  # a reading in progress may still finish
        load["is"] = False
        time.sleep(0.1)
    assert load["read_idle"] == 0
    first, last = sampler.take()
    sampler.close()
    assert (first["gpu"], last["gpu"]) == (0, 2)
    assert (first["sm_mhz"], first["lowest_sm_mhz"], first["memory_mhz"]) == (1200, 1200, 2600)
    assert first["held_back_by"] == ["thermal, hardware"]
    assert first["readings"] > 3
    assert sampler.take() == []
    sampler.close()
    assert not [t for t in threading.enumerate() if t.name == "gpu-sampler"]


def test_without_a_gpu_there_is_no_thread() -> None:
    sampler = GpuSampler(Gpus())
    sampler.resume()
    if not Gpus().present:
        assert not [t for t in threading.enumerate() if t.name == "gpu-sampler"]
    sampler.close()


def test_summary_of_readings() -> None:
    readings = [
        {"gpu": 0, "sm_mhz": 1980, "held_back_by": []},
        {"gpu": 0, "sm_mhz": 1200, "held_back_by": ["power cap"]},
        {"gpu": 0, "sm_mhz": 1900, "power_w": 300.0, "held_back_by": ["power cap"]},
    ]
    assert summarize_readings(readings) == {
        "gpu": 0,
        "readings": 3,
        "sm_mhz": 1900,
        "lowest_sm_mhz": 1200,
        "power_w": 300.0,
        "held_back_by": ["power cap"],
    }


@pytest.mark.usefixtures("driver")
def test_devices_without_a_cuda_package() -> None:
    devices, version = cuda._devices_from_nvml()
    assert [(d.index, d.sm, d.memory_bytes) for d in devices] == [
        (0, "sm121", None),
        (2, "sm90", 80 * 2**30),
    ]
    assert version == "13.0"


# --- CUDA's and NVML's numbers -----------------------------------------------------------------------


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs that CUDA counts the other way round, the second of them in use."""

    def by_address(address: str) -> str:
        # NVML prints domains with eight digits and takes them with four, too.
        handles = {"0000:17:00.0": "handle 0", "0000:65:00.0": "handle 1"}
        if address not in handles:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handles[address]

    def number(of: str) -> int:
        return int(of.rpartition(" ")[2])

    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetCudaDriverVersion": lambda: 13000,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
        "nvmlDeviceGetHandleByPciBusId": by_address,
        "nvmlDeviceGetIndex": number,
        "nvmlDeviceGetPciInfo": lambda of: SimpleNamespace(
            domain=0, bus=(0x17, 0x65)[number(of)], device=0
        ),
        "nvmlDeviceGetName": lambda of: f"GPU {number(of)}",
        "nvmlDeviceGetCudaComputeCapability": lambda _: (8, 9),
        "nvmlDeviceGetMemoryInfo": lambda of: SimpleNamespace(
            total=24 << 30, free=(1 if number(of) else 23) << 30
        ),
        "nvmlDeviceGetClockInfo": lambda *_: 2000,
        "nvmlDeviceGetTemperature": lambda *_: 40,
        "nvmlDeviceGetPowerUsage": lambda _: 100_000,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda of: 0x4 * number(of),
        "nvmlDeviceGetTotalEnergyConsumption": lambda of: 1000 * (1 + number(of)),
    }
    for name, function in functions.items():
        monkeypatch.setattr(pynvml, name, function)


def reversed_devices() -> list[cuda.CudaDevice]:
    return [
        cuda.CudaDevice(0, "GPU 1", (8, 9), 24 << 30, "0000:65:00"),
        cuda.CudaDevice(1, "GPU 0", (8, 9), 24 << 30, "0000:17:00"),
    ]


@pytest.mark.usefixtures("node")
def test_only_the_gpu_that_is_measured_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "cuda_devices", reversed_devices)
    (used,) = Gpus(["cuda:1"]).read()
    assert (used["gpu"], used["held_back_by"]) == (0, [])
    (other,) = Gpus(["cuda:0"]).read()
    assert (other["gpu"], other["held_back_by"]) == (1, ["power cap"])
    assert (Gpus(["cuda:1"]).joules(), Gpus(["cuda:0"]).joules(), Gpus().joules()) == (1, 2, 3)
    assert [gpu["gpu"] for gpu in Gpus().read()] == [0, 1]
    on_the_cpu = Gpus([])
    assert not on_the_cpu.present
    assert (on_the_cpu.read(), on_the_cpu.joules()) == ([], None)


@pytest.mark.usefixtures("node")
def test_an_address_that_nvml_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's index is then the best guess; beyond its last one there is nothing."""
    monkeypatch.setattr(
        cuda, "cuda_devices", lambda: [cuda.CudaDevice(n, "GPU", (8, 9), 1) for n in (1, 2)]
    )
    with Nvml() as nvml:
        assert cuda.nvml_gpus(nvml) == {"cuda:1": (1, "handle 1")}
        assert nvml.at("0000:99:00") is None


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [(0, "GPU 0"), (1, "GPU 1")]),
        ("1", [(0, "GPU 1")]),
        ("1,0", [(0, "GPU 1"), (1, "GPU 0")]),
        ("0,7", [(0, "GPU 0")]),
        ("GPU-0f1e", [(0, "GPU 0"), (1, "GPU 1")]),
    ],
)
def test_visible_gpus_without_a_cuda_package(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[tuple[int, str]]
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices, _ = cuda._devices_from_nvml()
    assert [(device.index, device.name) for device in devices] == found
    assert devices[0].address == ("0000:17:00" if found[0][1] == "GPU 0" else "0000:65:00")


@pytest.mark.usefixtures("node")
def test_workers_are_weighed_against_the_memory_of_their_own_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from optimizer.profiling import grouping
    from optimizer.profiling.harness import Cell

    monkeypatch.setattr(cuda, "cuda_devices", reversed_devices)
    monkeypatch.setattr(grouping, "available_memory", lambda: 1 << 40)
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(bytes(1 << 20))

    def groups(device: str, batch: int) -> int:
        names = ("base", "base (again)", "a", "b", "c", "d")
        cells = [
            Cell(name=n, engine=checkpoint, batch=batch, image_size=224, threads=1, device=device)
            for n in names
        ]
        return len(grouping.split_into_groups(cells, shared=names[:2]))

    assert groups("cuda:1", 1) == 1
    assert groups("cuda:0", 1) == 4, "this GPU is full: one engine at a time, and it may fail"
    # 128 images need 5 GB of activations a worker, so that 24 GB do not hold six of them.
    assert groups("cuda:1", 128) > 1


@pytest.mark.usefixtures("node")
def test_free_memory_of_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML reports 23 GiB for the whole GPU, of which CUDA has a slice of 5 GiB."""
    parts = [
        cuda.CudaDevice(0, "GPU 0 MIG 1g.5gb", (8, 9), 5 << 30, "0000:17:00"),
        cuda.CudaDevice(1, "GPU 1", (8, 9), 24 << 30, "0000:65:00"),
        cuda.CudaDevice(2, "unknown", (8, 9), 8 << 30, "0000:99:00"),
    ]
    monkeypatch.setattr(cuda, "cuda_devices", lambda: parts)
    assert cuda.free_memory() == {"cuda:0": 5 << 30, "cuda:1": 1 << 30, "cuda:2": 8 << 30}
