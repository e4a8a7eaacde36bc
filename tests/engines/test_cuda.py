"""CUDA: what is here, what is held, and that every call exists in the real package."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optimizer.engines.cuda as cuda
import optimizer.engines.cuda_bindings as bindings
from optimizer.engines.cuda import (
    DeviceBuffer,
    Event,
    PinnedBuffer,
    Stream,
    cuda_api,
    cuda_devices,
    cuda_status,
    device_index,
)
from optimizer.errors import MissingDevice, MissingLibrary, ResnetOptError, UsageError

from .tensorrt.hostgpu import HostCuda

without_gpu = pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")


@pytest.fixture
def cuda_python() -> Any:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    return bindings.CudaPython()


# --- what is here --------------------------------------------------------------------------------


@without_gpu
def test_a_machine_without_a_driver() -> None:
    assert cuda_devices() == []
    status = cuda_status()
    assert status.fault is not None
    assert status.hint is not None
    assert status.driver is None


@pytest.mark.parametrize("value", ["", "-1"])
@pytest.mark.parametrize("raises", [False, True])
def test_every_gpu_is_hidden(monkeypatch: pytest.MonkeyPatch, value: str, raises: bool) -> None:
    """As CUDA tells it: no device, or an error of the call that counts them."""

    class Hidden(HostCuda):
        def devices(self) -> list[bindings.CudaDevice]:
            if raises:
                raise MissingDevice("no CUDA-capable device is detected (CUDA error 100)")
            return []

    monkeypatch.setattr(cuda, "cuda_api", Hidden)
    assert "CUDA_VISIBLE_DEVICES" not in str(cuda_status().fault)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    status = cuda_status()
    assert status.fault == "CUDA_VISIBLE_DEVICES hides every GPU"
    assert status.hint == "unset CUDA_VISIBLE_DEVICES"


def test_without_any_package_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Any:
        raise MissingLibrary("neither is installed", hint="pip install it")

    monkeypatch.setattr(cuda, "cuda_api", nothing)
    gpu = bindings.CudaDevice(0, "NVIDIA Test", (8, 6), 1 << 33)
    monkeypatch.setattr(cuda, "_devices_from_nvml", lambda: ((gpu,), "13.0"))
    status = cuda_status()
    assert status.devices == (gpu,)
    assert (status.fault, status.hint) == ("neither is installed", "pip install it")
    assert gpu.sm == "sm86"
    monkeypatch.setattr(cuda, "_devices_from_nvml", lambda: ((), None))
    assert cuda_status().fault == "no NVIDIA driver"


@without_gpu
def test_nvml_without_a_driver_is_no_error() -> None:
    assert cuda._devices_from_nvml() == ((), None)


def test_neither_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibrary, match="neither cuda-python nor pycuda") as caught:
        cuda.open_api()
    assert caught.value.hint == 'pip install "resnet-opt[cuda]"'


@pytest.mark.parametrize(
    ("name", "index"), [(None, 0), ("cuda", 0), ("cuda:0", 0), ("cuda:3", 3), ("2", 2)]
)
def test_device_names(name: str | None, index: int) -> None:
    assert device_index(name) == index


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu", "cuda1", ":1", "-1"])
def test_no_device_names(name: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        device_index(name)


def test_versions() -> None:
    assert bindings.cuda_version(13000) == "13.0"
    assert bindings.cuda_version(12090) == "12.9"
    assert bindings.cuda_version(0) is None


# --- what is held --------------------------------------------------------------------------------


def test_a_round_trip_happens_when_it_is_waited_for() -> None:
    api = HostCuda()
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with (
        Stream(api=api) as stream,
        PinnedBuffer(values.nbytes, api=api) as source,
        PinnedBuffer(values.nbytes, api=api) as target,
        DeviceBuffer(values.nbytes, api=api) as device,
    ):
        source.view(values.shape, values.dtype)[:] = values
        stream.upload(device, source, values.nbytes)
        stream.download(target, device, values.nbytes)
        assert not target.view(values.shape, values.dtype).any()
        stream.synchronize()
        np.testing.assert_array_equal(target.view(values.shape, values.dtype), values)
    assert api.held == 0


def test_what_is_closed_is_closed_once_and_not_used() -> None:
    api = HostCuda()
    buffer = DeviceBuffer(16, api=api)
    buffer.close()
    buffer.close()
    with pytest.raises(ValueError, match="DeviceBuffer is closed"):
        _ = buffer.handle
    assert api.held == 0


def test_a_view_stays_inside_its_buffer() -> None:
    with PinnedBuffer(16, api=HostCuda()) as buffer:
        assert buffer.view((2, 2), np.dtype(np.float32)).shape == (2, 2)
        with pytest.raises(ValueError, match="20 bytes do not fit into 16"):
            buffer.view((5,), np.dtype(np.float32))


def test_events_and_graphs() -> None:
    api = HostCuda()
    with Stream(api=api) as stream, Event(api=api) as start, Event(api=api) as stop:
        done: list[int] = []
        with stream.capture() as captured:
            start.record(stream)
            api.put(stream.handle, lambda: done.append(1))
            stop.record(stream)
        (graph,) = captured
        assert done == []
        for _ in range(3):
            graph.launch(stream)
        stop.synchronize()
        assert done == [1, 1, 1]
        assert stop.elapsed_ms(start) == 2.0
        graph.close()
    assert api.held == 0


def test_a_capture_that_fails_leaves_the_stream_usable() -> None:
    api = HostCuda()
    with Stream(api=api) as stream:
        with pytest.raises(RuntimeError, match="in the block"), stream.capture():
            raise RuntimeError("in the block")
        stream.synchronize()
        assert not api.graphs
        assert not api.capturing


# --- the real package ----------------------------------------------------------------------------


def runtime_calls() -> dict[str, int]:
    """Functions of ``cuda.bindings.runtime`` that the source calls, with how many arguments."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(bindings))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call":
            name = node.args[0]
            assert isinstance(name, ast.Constant)
            found[str(name.value)] = len(node.args) - 1
    return found


def runtime_names() -> list[str]:
    """Dotted names under ``cuda.bindings.runtime`` that the source uses."""
    tree = ast.parse(inspect.getsource(bindings))
    texts = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    prefix = "self._runtime."
    return sorted(text.removeprefix(prefix) for text in texts if text.startswith(prefix))


CHECK = """
import functools, inspect, json, sys
from cuda.bindings import runtime
asked = json.load(sys.stdin)
def find(name):
    return functools.reduce(lambda o, part: getattr(o, part, None), name.split("."), runtime)
wrong = [name for name in asked["names"] if find(name) is None]
for name, count in asked["calls"].items():
    function = getattr(runtime, name, None)
    told = (function.__doc__ or "").split(chr(10))[0] if function else ""
    inside = told.partition("(")[2].rpartition(")")[0]
    arguments = len([a for a in inside.split(",") if a.strip() not in ("", "/", "*")])
    if function is None or arguments != count:
        wrong.append(f"{name}: {told or 'missing'}")
print(json.dumps(wrong))
"""


def check_runtime(environment: dict[str, str] | None = None) -> list[str]:
    outcome = subprocess.run(
        [sys.executable, "-c", CHECK],
        input=json.dumps({"calls": runtime_calls(), "names": runtime_names()}),
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stderr
    wrong: list[str] = json.loads(outcome.stdout)
    return wrong


def test_every_call_is_collected() -> None:
    assert len(runtime_calls()) > 15
    assert runtime_calls()["cudaMemcpyAsync"] == 5
    assert "cudaMemcpyKind.cudaMemcpyHostToDevice" in runtime_names()


def test_cuda_python_has_every_call(cuda_python: Any) -> None:
    assert check_runtime() == []


@pytest.mark.slow
def test_cuda_python_12_has_every_call(tmp_path: Path) -> None:
    requirement = "cuda-bindings==12.9.4"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    outcome = subprocess.run(
        [*command, "--disable-pip-version-check", "-d", str(tmp_path), requirement],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if outcome.returncode != 0:
        lines = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"pip cannot download {requirement}: {(lines or ['no reason given'])[-1]}")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert check_runtime({"PYTHONPATH": str(tmp_path)}) == []


@without_gpu
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("devices", ()),
        ("set_device", (0,)),
        ("malloc", (16,)),
        ("malloc_host", (16,)),
        ("stream_create", ()),
        ("stream_synchronize", (12345,)),
        ("to_device", (1, 2, 4, 12345)),
        ("to_host", (1, 2, 4, 12345)),
        ("event_create", ()),
        ("event_record", (1, 2)),
        ("capture_begin", (12345,)),
        ("graph_launch", (1, 2)),
    ],
)
def test_integers_are_taken_as_handles_and_no_driver_is_told(
    cuda_python: Any, call: str, arguments: tuple[int, ...]
) -> None:
    """The real package takes the arguments and fails on the missing driver, not on their types."""
    with pytest.raises(MissingDevice, match=r"CUDA driver version is insufficient") as caught:
        getattr(cuda_python, call)(*arguments)
    assert "CUDA error 35" in caught.value.message


def test_devices_have_their_address(cuda_python: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the real package's own structure."""
    runtime = cuda_python._runtime
    gpu = runtime.cudaDeviceProp()
    gpu.major, gpu.minor, gpu.totalGlobalMem = 9, 0, 1 << 37
    gpu.pciDomainID, gpu.pciBusID, gpu.pciDeviceID = 1, 0x1A, 0
    fine = runtime.cudaError_t.cudaSuccess
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (fine, 1))
    monkeypatch.setattr(runtime, "cudaGetDeviceProperties", lambda index: (fine, gpu))
    (device,) = cuda_python.devices()
    assert (device.sm, device.memory_bytes, device.address) == ("sm90", 1 << 37, "0001:1a:00")


@without_gpu
def test_a_driver_that_is_too_old_for_the_package(
    cuda_python: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's error is the one of a machine without a driver; NVML knows better."""
    monkeypatch.setattr(cuda_python, "_driver_by_nvml", lambda: "12.4")
    with pytest.raises(MissingDevice, match=r"needs a newer driver .* for CUDA 12\.4") as caught:
        cuda_python.devices()
    assert str(caught.value.hint) == 'update the driver, or pip install "cuda-python<13"'


def failing_with(cuda_python: Any, code: int) -> list[str]:
    """Let the package's allocation fail; the list gets the names of what is called after it."""
    error = cuda_python._runtime.cudaError_t(code)
    called: list[str] = []

    class Failing:
        """A runtime whose only function fails as an allocation does."""

        cudaGetErrorString = staticmethod(cuda_python._runtime.cudaGetErrorString)

        @staticmethod
        def cudaMalloc(size: int) -> tuple[Any, None]:
            return error, None

        @staticmethod
        def cudaGetLastError() -> tuple[Any]:
            called.append("cudaGetLastError")
            return (error,)

    cuda_python._runtime = Failing
    return called


def test_other_errors_of_cuda_keep_their_text(cuda_python: Any) -> None:
    called = failing_with(cuda_python, 2)
    with pytest.raises(
        ResnetOptError, match=r"cudaMalloc: out of memory \(CUDA error 2\)"
    ) as caught:
        cuda_python.malloc(1 << 40)
    assert "smaller batch" in str(caught.value.hint)
    assert called == ["cudaGetLastError"], "TensorRT would find the error after its next kernel"


@pytest.mark.parametrize("code", [700, 719, 999])
def test_errors_that_stay_say_so(cuda_python: Any, code: int) -> None:
    failing_with(cuda_python, code)
    with pytest.raises(ResnetOptError, match=rf"CUDA error {code}") as caught:
        cuda_python.malloc(1)
    assert "start again" in str(caught.value.hint)


# --- a real GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
def test_memory_events_and_graphs_on_a_gpu() -> None:
    status = cuda_status()
    if status.fault is not None:
        pytest.skip(status.fault)
    api = cuda_api()
    api.set_device(0)
    size = 1 << 20
    with (
        Stream() as stream,
        PinnedBuffer(size) as source,
        PinnedBuffer(size) as target,
        DeviceBuffer(size) as device,
        Event() as start,
        Event() as stop,
    ):
        numbers = source.view((size,), np.dtype(np.uint8))
        numbers[:] = np.arange(size) % 251
        try:
            with stream.capture() as captured:
                stream.upload(device, source, size)
                stream.download(target, device, size)
        except MissingLibrary as error:
            pytest.skip(error.message)
        (graph,) = captured
        start.record(stream)
        for _ in range(10):
            graph.launch(stream)
        stop.record(stream)
        stop.synchronize()
        np.testing.assert_array_equal(target.view((size,), np.dtype(np.uint8)), numbers)
        assert 0 < stop.elapsed_ms(start) < 1000
        graph.close()
