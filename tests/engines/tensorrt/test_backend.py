"""What the backends say of themselves, on this machine and on others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer.engines.tensorrt.backend as backend
from optimizer.engines import get_backend
from optimizer.engines.cuda import CudaDevice, CudaStatus, cuda_devices
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt import TensorRt, TensorRtRtx
from optimizer.engines.tensorrt.library import LibraryStatus
from optimizer.errors import MissingLibrary, UnsupportedPrecision, UsageError
from optimizer.progress import Silent

NO_GPU = CudaStatus((), "cuda-python 13.4.4", None, "no NVIDIA driver", "a GPU")


def machine(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, version: str | None
) -> None:
    """A machine with this GPU and this version of the library."""
    status = NO_GPU
    if capability is not None:
        gpu = CudaDevice(0, "NVIDIA Test", capability, 1 << 34)
        status = CudaStatus((gpu,), "cuda-python 13.4.4", "13.0", None, None)
    installed = LibraryStatus(object(), version, None, None)
    if version is None:
        installed = LibraryStatus(None, None, "it is not installed", "pip install it")
    monkeypatch.setattr(backend, "cuda_status", lambda: status)
    monkeypatch.setattr(backend, "find", lambda library: installed)


@pytest.mark.parametrize(
    ("kind", "capability", "version", "builds", "runs", "reason"),
    [
        (TensorRtRtx, None, "1.7.1", True, False, "TensorRT-RTX 1.7.1; no NVIDIA driver"),
        (TensorRtRtx, (8, 9), "1.7.1", True, True, "on NVIDIA Test (sm89), CUDA 13.0, cuda-python"),
        (TensorRtRtx, (9, 0), "1.7.1", True, False, "does not run on sm90 (Hopper)"),
        (TensorRtRtx, (8, 9), None, False, False, "it is not installed"),
        (TensorRt, None, "11.4.0", False, False, "TensorRT 11.4.0; no NVIDIA driver"),
        (TensorRt, (9, 0), "10.16.1", True, True, "TensorRT 10.16.1 on NVIDIA Test (sm90)"),
    ],
)
def test_availability(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[TensorRt],
    capability: tuple[int, int] | None,
    version: str | None,
    builds: bool,
    runs: bool,
    reason: str,
) -> None:
    machine(monkeypatch, capability, version)
    available = kind().availability()
    assert (available.can_build, available.can_run) == (builds, runs)
    assert reason in available.reason
    assert (available.hint is None) == runs


def test_the_first_gpu_is_not_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX does not run on Hopper, but on the card beside it."""
    machine(monkeypatch, (9, 0), "1.7.1")
    hopper = CudaDevice(0, "NVIDIA H100", (9, 0), 1 << 36)
    ada = CudaDevice(1, "NVIDIA L40S", (8, 9), 1 << 35)
    status = CudaStatus((hopper, ada), "cuda-python 13.4.4", "13.0", None, None)
    monkeypatch.setattr(backend, "cuda_status", lambda: status)
    available = TensorRtRtx().availability()
    assert (available.can_build, available.can_run) == (True, True)
    assert "on NVIDIA L40S (sm89), --device cuda:1, CUDA 13.0" in available.reason


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")
def test_availability_here(rtx: TensorRtRtx) -> None:
    available = rtx.availability()
    assert available.can_build
    assert not available.can_run
    assert "no NVIDIA driver" in available.reason
    assert available.hint


def test_tensorrt_without_its_library_says_how_to_get_it(tmp_path: Path) -> None:
    available = TensorRt().availability()
    if available.can_build or "not installed" not in available.reason:
        pytest.skip(f"TensorRT is installed: {available.reason}")
    assert available.hint == 'pip install "resnet-opt[tensorrt]"'
    from . import graphs

    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp16")
    with pytest.raises(MissingLibrary, match="tensorrt is not installed"):
        TensorRt().build(graph, tmp_path / "m.plan", BuildSettings(precision="fp16"), Silent())


def test_the_registry_knows_both() -> None:
    assert isinstance(get_backend("tensorrt-rtx"), TensorRtRtx)
    assert type(get_backend("tensorrt")) is TensorRt


def test_an_engine_of_tensorrt_belongs_to_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, (8, 6), "11.4.0")
    assert TensorRt().device() == {
        "kind": "gpu",
        "name": "NVIDIA Test",
        "compute_capability": "sm86",
        "cuda": "13",
    }
    assert TensorRtRtx().device() == {"kind": "gpu"}


def test_what_goes_into_the_manifest() -> None:
    settings = BuildSettings(precision="fp16", targets=("8.6", "sm120"))
    own = TensorRtRtx().engine_settings(settings)
    assert own["capabilities"] == ["sm86", "sm120"]
    assert own["tensorrt_options"]["tf32"] is False
    json.dumps(own)


def test_settings_are_refused_before_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedPrecision, match="FP8 needs sm89 or later"):
        TensorRtRtx().engine_settings(BuildSettings(precision="fp8", targets=("sm86",)))
    with pytest.raises(UsageError, match="no option"):
        TensorRtRtx().engine_settings(BuildSettings(precision="fp16", options={"fp16": True}))
    machine(monkeypatch, (8, 6), "11.4.0")
    with pytest.raises(UnsupportedPrecision, match="FP8 needs sm89 or later, sm86"):
        TensorRt().engine_settings(BuildSettings(precision="fp8"))
    with pytest.raises(UsageError, match="compiles for this machine's GPU, sm86, not for sm89"):
        TensorRt().engine_settings(BuildSettings(precision="fp16", targets=("sm89",)))


def test_naming_the_backends_imports_no_library() -> None:
    code = (
        "import sys, optimizer.engines; optimizer.engines.backends();"
        "print([m for m in ('tensorrt', 'tensorrt_rtx', 'cuda', 'onnx', 'torch') if m in sys.modules])"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert outcome.stdout.strip() == "[]"
