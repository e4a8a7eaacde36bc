"""``--device`` applies to GPU engines, and is refused if there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import optimizer.engines.placement as placement
from optimizer.artifacts import Artifact, Manifest, Plan, library_versions, produce
from optimizer.engines.cuda import CudaDevice
from optimizer.engines.onnxruntime import OnnxRuntime
from optimizer.engines.opening import check_opens, rebuild_command
from optimizer.engines.placement import (
    assign_devices,
    check_device,
    device_of,
    runs_on,
    runs_on_gpu,
)
from optimizer.errors import ArtifactError, MissingDevice, UsageError


def engine(path: Path, **settings: Any) -> Artifact:
    def write(target: Path) -> dict[str, Any]:
        target.write_bytes(b"an engine")
        return {}

    return produce(Plan(kind="engine", settings=settings, inputs=[], libraries={}), path, write)


@pytest.mark.parametrize(
    ("settings", "gpu"),
    [
        ({"backend": "openvino"}, False),
        ({"backend": "torch"}, False),
        ({"backend": "onnxruntime"}, False),
        ({"backend": "onnxruntime", "options": {"provider": "cpu"}}, False),
        ({"backend": "onnxruntime", "options": {"provider": "cuda"}}, True),
        ({"backend": "tensorrt"}, True),
        ({"backend": "third-party"}, True),
    ],
)
def test_which_engines_run_on_a_gpu(settings: dict[str, Any], gpu: bool) -> None:
    assert runs_on_gpu(settings) is gpu


def test_the_device_applies_to_gpu_engines_only(tmp_path: Path) -> None:
    host = engine(tmp_path / "a.blob", backend="openvino").path
    gpu = engine(tmp_path / "b.plan", backend="tensorrt").path
    checkpoint = tmp_path / "model.safetensors"
    assert device_of(host, "cuda:1") is None
    assert device_of(checkpoint, "cuda:1") is None
    assert device_of(gpu, "cuda:1") == "cuda:1"
    assert device_of(gpu, None) is None
    check_device([host, checkpoint, gpu], "cuda:1")
    check_device([host], None)
    with pytest.raises(UsageError, match="but all engines run on the CPU"):
        check_device([host, checkpoint], "cuda:9")
    with pytest.raises(UsageError, match="unknown device 'gpu0'"):
        check_device([gpu], "gpu0")


def test_pytorch_runs_on_the_gpu_beside_gpu_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Being faster than PyTorch on a CPU says nothing about a GPU engine."""
    host = engine(tmp_path / "a.blob", backend="openvino").path
    gpu = engine(tmp_path / "b.plan", backend="tensorrt").path
    other = engine(tmp_path / "c.x", backend="third-party").path
    checkpoint = tmp_path / "model.safetensors"
    copied = engine(tmp_path / "copy.safetensors", backend="torch").path
    monkeypatch.setattr(placement, "_gpus_of_pytorch", lambda: 2)
    assert assign_devices([host, checkpoint], None) == {host: None, checkpoint: None}
    assert assign_devices([other, checkpoint], None) == {other: None, checkpoint: None}
    assert assign_devices([gpu, checkpoint, copied, host], None) == {
        gpu: None, checkpoint: "cuda:0", copied: "cuda:0", host: None,
    }  # fmt: skip
    assert assign_devices([gpu, checkpoint], "cuda:1") == {gpu: "cuda:1", checkpoint: "cuda:1"}
    assert assign_devices([checkpoint], "cuda") == {checkpoint: "cuda:0"}
    with pytest.raises(UsageError, match="but all engines run on the CPU"):
        assign_devices([checkpoint, host], "cuda:2")
    monkeypatch.setattr(placement, "_gpus_of_pytorch", lambda: 0)
    assert assign_devices([gpu, checkpoint], "cuda:1") == {gpu: "cuda:1", checkpoint: None}
    with pytest.raises(UsageError, match="but all engines run on the CPU"):
        assign_devices([checkpoint], "cuda:0")


def test_the_device_a_file_runs_on(tmp_path: Path) -> None:
    provider = {"backend": "onnxruntime", "options": {"provider": "cuda"}}
    assert runs_on(engine(tmp_path / "a.onnx", **provider).path, "cuda:1") == "cuda:1"
    assert runs_on(engine(tmp_path / "b.onnx", backend="onnxruntime").path, None) == "cpu"
    assert runs_on(engine(tmp_path / "c.plan", backend="tensorrt").path, None) == "cuda:0"
    assert runs_on(engine(tmp_path / "d.x", backend="third-party").path, None) is None
    assert runs_on(tmp_path / "model.safetensors", None) == "cpu"
    assert runs_on(tmp_path / "model.safetensors", "cuda:0") == "cuda:0"


def test_a_gpu_provider_engine_may_come_from_another_cpu(tmp_path: Path) -> None:
    backend = OnnxRuntime()
    elsewhere = {"kind": "cpu", "model": "another CPU", "flags": []}

    def manifest(name: str, **options: str) -> tuple[Path, Manifest]:
        plan = Plan(
            kind="engine", settings={"backend": "onnxruntime", "options": options}, inputs=[],
            libraries=library_versions(*backend.libraries), device=elsewhere,
        )  # fmt: skip
        built = produce(plan, tmp_path / name, lambda path: path.write_bytes(b"an engine") and {})
        return built.path, built.manifest

    check_opens(backend, *manifest("gpu.onnx", provider="cuda"))
    with pytest.raises(ArtifactError, match="was built for model another CPU") as caught:
        check_opens(backend, *manifest("cpu.onnx"))
    assert "--engine onnxruntime" in str(caught.value.hint)


def test_the_rebuild_command_includes_the_provider(tmp_path: Path) -> None:
    built = engine(
        tmp_path / "m.onnx",
        backend="onnxruntime",
        precision="fp16",
        options={"provider": "cuda", "provider_options": {"use_tf32": "1", "prefer_nhwc": "1"}},
    )
    command = rebuild_command(built.path, built.manifest)
    assert "--engine onnxruntime --provider cuda --provider-option " in command
    assert "--provider-option use_tf32=1" in command
    assert "--provider-option prefer_nhwc=1" in command
    assert "--provider cuda" in command


def test_a_gpu_that_the_machine_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured; without any GPU, the engine says what is missing."""
    gpu = engine(tmp_path / "b.plan", backend="tensorrt").path
    checkpoint = tmp_path / "model.safetensors"
    two = [CudaDevice(n, "NVIDIA Test", (9, 0), 1 << 37) for n in range(2)]
    monkeypatch.setattr(placement, "cuda_devices", lambda: two)
    monkeypatch.setattr(placement, "_gpus_of_pytorch", lambda: 2)
    for refused in (assign_devices, check_device):
        with pytest.raises(MissingDevice, match=r"there is no cuda:7, only 2 GPU") as caught:
            refused([gpu, checkpoint], "cuda:7")
        assert caught.value.hint == "--device cuda:0 to cuda:1"
        with pytest.raises(MissingDevice):
            refused([checkpoint], "cuda:7")
        refused([gpu], "cuda:1")
    monkeypatch.setattr(placement, "cuda_devices", list)
    assert assign_devices([gpu], "cuda:7") == {gpu: "cuda:7"}
