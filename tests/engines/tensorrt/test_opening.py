"""Opening engines, and its errors."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import optimizer.engines.tensorrt.engine_opening as opening
import optimizer.engines.tensorrt.rtx as rtx_module
from optimizer.artifacts import Plan, produce, read_manifest
from optimizer.engines.cuda import CudaDevice, CudaStatus, cuda_devices
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt import TensorRtRtx
from optimizer.engines.tensorrt.library import TENSORRT_RTX, load
from optimizer.engines.tensorrt.log import BuildLog, make_logger
from optimizer.engines.tensorrt.weight_refit import refit_engine
from optimizer.errors import ArtifactError, GraphError, MissingDevice, ResnetOptError, UsageError
from optimizer.progress import Silent
from tests.manifests import edit_manifest

from . import graphs

ADA = CudaDevice(0, "NVIDIA Ada", (8, 9), 1 << 34)
HOPPER = CudaDevice(1, "NVIDIA Hopper", (9, 0), 1 << 36)
without_gpu = pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")


@pytest.fixture
def engine(rtx: TensorRtRtx, tmp_path: Path) -> Path:
    """A real engine for sm86 with its manifest."""
    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp16")
    settings = BuildSettings(precision="fp16", targets=("sm86",))
    plan = Plan(
        kind="engine", settings={"backend": "tensorrt-rtx", **rtx.engine_settings(settings)}
    )

    def write(path: Path) -> dict[str, Any]:
        layers = rtx.build(graph, path, settings, Silent()).layers
        return {"layers": [layer.model_dump() for layer in layers]}

    return produce(plan, tmp_path / "model.rtx", write).path


def gpus(monkeypatch: pytest.MonkeyPatch, *devices: CudaDevice) -> None:
    status = CudaStatus(devices, "cuda-python", "13.0", None, None)
    monkeypatch.setattr(opening, "cuda_status", lambda: status)


@without_gpu
def test_without_a_gpu(rtx: TensorRtRtx, engine: Path) -> None:
    with pytest.raises(
        MissingDevice, match="TensorRT-RTX needs a GPU to run: no NVIDIA driver"
    ) as e:
        rtx.load(engine)
    assert e.value.exit_code == 3
    assert e.value.hint


@without_gpu
def test_engine_rejected_by_the_library(rtx: TensorRtRtx, engine: Path) -> None:
    """Without a driver it rejects even a valid engine; the message must contain the reason."""
    trt = load(TENSORRT_RTX)
    log = BuildLog()
    runtime = trt.Runtime(make_logger(trt, log))
    with pytest.raises(ArtifactError, match=r"TensorRT-RTX rejects model\.rtx: .*driver") as caught:
        opening.deserialize(TENSORRT_RTX, runtime, engine, log)
    assert "\n" not in str(caught.value)


def test_full_gpu_memory_is_not_an_engine_error(tmp_path: Path) -> None:
    path = tmp_path / "m.plan"
    path.write_bytes(b"engine")
    log = BuildLog()

    def refuse(_: bytes) -> None:
        log.add("ERROR", "Error Code 2: OutOfMemory (Requested size was 67108864 bytes.)")

    runtime = SimpleNamespace(deserialize_cuda_engine=refuse)
    with pytest.raises(ResnetOptError, match=r"too little free memory to open m\.plan") as caught:
        opening.deserialize(TENSORRT_RTX, runtime, path, log)
    assert not isinstance(caught.value, ArtifactError)
    assert "nvidia-smi" in str(caught.value.hint)


def test_device_names(rtx: TensorRtRtx, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, ADA, HOPPER)
    assert opening.pick_device(TENSORRT_RTX, None) is ADA
    assert opening.pick_device(TENSORRT_RTX, "cuda:0") is ADA
    with pytest.raises(MissingDevice, match=r"does not run on sm90 \(Hopper\)"):
        rtx.load(engine, device="cuda:1")
    with pytest.raises(MissingDevice, match="there is no cuda:2, only 2"):
        rtx.load(engine, device="cuda:2")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        rtx.load(engine, device="gpu")


@pytest.mark.parametrize(
    ("options", "wrong"),
    [({"speed": 1}, "no option 'speed'"), ({"specialization": "fast"}, "specialization 'fast'")],
)
def test_options_are_checked(
    rtx: TensorRtRtx, engine: Path, options: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(UsageError, match=wrong) as caught:
        rtx.load(engine, options=options)
    assert caught.value.hint


def test_runtime_options_come_from_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.rtx"
    options = {"specialization": "none", "runtime_cache": "kernels.bin", "cuda_graph": True}
    plan = Plan(kind="engine", settings={"options": {**options, "refittable": True}})
    manifest = produce(plan, path, lambda p: p.write_bytes(b"engine") and {}).manifest
    assert rtx_module.RuntimeOptions.read(
        TENSORRT_RTX, opening._recorded(path, manifest)
    ) == rtx_module.RuntimeOptions(tmp_path / "kernels.bin", "none", cuda_graph=True)
    manifest.settings["options"]["runtime_cache"] = "/etc/elsewhere/kernels.bin"
    assert opening._recorded(path, manifest)["runtime_cache"] == tmp_path / "kernels.bin"
    assert opening._recorded(path, None) == {}


def test_only_an_engine_that_carries_its_runtime_may_run_host_code(tmp_path: Path) -> None:
    plan = Plan(kind="engine", settings={"options": {"version_compatible": True}})
    path = tmp_path / "m.plan"
    artifact = produce(plan, path, lambda p: p.write_bytes(b"engine") and {})
    assert opening.carries_runtime(artifact.manifest)
    assert not opening.carries_runtime(None)
    edit_manifest(path, settings={})
    manifest = opening._manifest(path)
    assert manifest is not None
    assert not opening.carries_runtime(manifest)


def test_engine_of_another_tool_has_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"engine")
    assert opening._manifest(tmp_path / "m.plan") is None
    with pytest.raises(ArtifactError, match="no such file"):
        opening._manifest(tmp_path / "n.plan")


@without_gpu
def test_refit_needs_a_gpu_and_a_good_graph(rtx: TensorRtRtx, engine: Path, tmp_path: Path) -> None:
    manifest, output = read_manifest(engine), tmp_path / "out.rtx"
    with pytest.raises(GraphError, match="no such file"):
        refit_engine(TENSORRT_RTX, engine, tmp_path / "none.onnx", output, manifest=manifest)
    with pytest.raises(MissingDevice, match="no NVIDIA driver"):
        refit_engine(TENSORRT_RTX, engine, tmp_path / "model.onnx", output, manifest=manifest)
    assert not (tmp_path / "out.rtx").exists()


class Kernels:
    """What the library gives: the compiled kernels as bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


def test_compiled_kernels_replace_only_kernels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kernels.bin"
    for content in (b"first", b"second", b"second"):
        rtx_module.save_runtime_cache(Kernels(content), path)
        assert path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernels.bin", "kernels.bin.json"]
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    path.write_bytes(b"somebody's")
    rtx_module.save_runtime_cache(Kernels(b"third"), path)
    assert path.read_bytes() == b"somebody's"
    assert "the compiled kernels are not kept: " in caplog.text
