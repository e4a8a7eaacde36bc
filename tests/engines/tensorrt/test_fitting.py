"""Checks from its manifest whether an engine runs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import optimizer.engines.tensorrt.backend as backend
import optimizer.engines.tensorrt.engine_opening as opening
from optimizer.artifacts import Manifest, Plan, produce
from optimizer.engines.cuda import CudaDevice, CudaStatus
from optimizer.engines.opening import check_opens, rebuild_command
from optimizer.engines.protocol import ChecksMachine
from optimizer.engines.registry import backends
from optimizer.engines.tensorrt import TensorRtRtx
from optimizer.engines.tensorrt.fitting import (
    changes,
    check_has_weights,
    device_misfits,
    driver_misfits,
    library_misfits,
)
from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX
from optimizer.errors import ArtifactError, MissingDevice, UsageError

AMPERE = CudaDevice(0, "NVIDIA Ampere", (8, 6), 1 << 34)
ADA = CudaDevice(0, "NVIDIA Ada", (8, 9), 1 << 34)
TURING = CudaDevice(0, "NVIDIA Turing", (7, 5), 1 << 34)
BLACKWELL = CudaDevice(1, "NVIDIA Blackwell", (12, 1), 1 << 36)
HOPPER = CudaDevice(1, "NVIDIA Hopper", (9, 0), 1 << 36)


def manifest(
    options: dict[str, Any] | None = None,
    libraries: dict[str, str] | None = None,
    built_on: dict[str, str] | None = None,
    gpu: CudaDevice = AMPERE,
    **settings: Any,
) -> Manifest:
    return Manifest(
        kind="engine",
        file="m.plan",
        sha256="0",
        created="now",
        tool={},
        key="0",
        settings={"options": options or {}, **settings},
        libraries=libraries or {},
        device={"kind": "gpu", "name": gpu.name, "compute_capability": gpu.sm},
        details={"built_on": built_on} if built_on else {},
    )


@pytest.mark.parametrize(
    ("built", "here", "compatible", "expected"),
    [
        ("10.16.1.11", "10.16.1.11", False, None),
        ("10.12.0.36", "10.16.1.11", False, "TensorRT 10.12.0.36 at build, 10.16.1.11 here"),
        ("10.12.0.36", "10.16.1.11", True, None),
        ("10.12.0.36", "11.4.0.106", True, None),
        ("10.16.1.11", "10.12.0.36", True, "run on later versions with the same major"),
        ("11.4.0.106", "12.0.0.1", True, "11.4.0.106 at build, 12.0.0.1 here"),
    ],
)
def test_tensorrt_versions(built: str, here: str, compatible: bool, expected: str | None) -> None:
    engine = manifest({"version_compatible": compatible}, {"tensorrt": built})
    misfits = library_misfits(TENSORRT, engine, {"tensorrt": here})
    assert bool(misfits) == bool(expected)
    assert not expected or expected in misfits[0]


def test_library_for_another_cuda_version() -> None:
    engine = manifest(libraries={"tensorrt-cu12": "10.16.1.11"})
    assert library_misfits(TENSORRT, engine, {"tensorrt-cu13": "10.16.1.11"}) == [
        "TensorRT for CUDA 12 at build, for CUDA 13 here"
    ]
    assert library_misfits(TENSORRT, engine, {"tensorrt-cu12": "10.16.1.11"}) == []
    both_names = {"tensorrt": "10.16.1.11", "tensorrt-cu12": "10.16.1.11"}
    assert library_misfits(TENSORRT, engine, both_names) == []
    assert library_misfits(TENSORRT, engine, {}) == []


@pytest.mark.parametrize(
    ("level", "here", "expected"),
    [
        ("none", AMPERE, None),
        ("none", CudaDevice(0, "NVIDIA Other", (8, 6), 1), "NVIDIA Ampere at build, NVIDIA Other"),
        ("none", ADA, "compute capability sm86 at build, sm89 here"),
        ("same-compute-capability", CudaDevice(0, "NVIDIA Other", (8, 6), 1), None),
        ("same-compute-capability", ADA, "compute capability sm86 at build, sm89 here"),
        ("ampere-plus", ADA, None),
        ("ampere-plus", HOPPER, None),
        ("ampere-plus", TURING, "built for sm80 and later, this GPU is sm75"),
    ],
)
def test_tensorrt_engine_on_a_gpu(level: str, here: CudaDevice, expected: str | None) -> None:
    misfits = device_misfits(TENSORRT, manifest({"hardware_compatibility": level}), here)
    assert bool(misfits) == bool(expected)
    assert not expected or expected in misfits[0]


@pytest.mark.parametrize(
    ("targets", "capabilities", "here", "fits"),
    [
        (["sm86"], ["sm86"], AMPERE, True),
        (["sm86"], ["sm86"], ADA, False),
        (["sm86", "sm89"], ["sm86", "sm89"], ADA, True),
        ([], [], ADA, True),
        ([], [], BLACKWELL, True),  # "and later"
        ([], [], TURING, False),
        ([], ["sm89", "sm120"], AMPERE, False),  # an FP8 engine without a named target
        ([], ["sm89", "sm120"], BLACKWELL, True),
        (["sm120"], ["sm120"], BLACKWELL, False),
    ],
)
def test_rtx_engine_on_a_gpu(
    targets: list[str], capabilities: list[str], here: CudaDevice, fits: bool
) -> None:
    engine = manifest(targets=targets, capabilities=capabilities)
    assert (device_misfits(TENSORRT_RTX, engine, here) == []) == fits


def test_drivers() -> None:
    engine = manifest(built_on={"driver": "580.65", "cuda": "13.0"})
    assert driver_misfits(engine, "13.2") == []
    assert driver_misfits(engine, "12.8") == ["a driver for CUDA 13.0 at build, for CUDA 12.8 here"]
    assert driver_misfits(manifest(), "12.8") == []
    assert changes(engine, "570.10", "12.8") == [
        "driver 580.65 at build, 570.10 here", "CUDA 13.0 at build, 12.8 here",
    ]  # fmt: skip
    assert changes(engine, "580.65", "13.0") == changes(None, "580.65", "13.0") == []


def test_an_engine_without_weights_is_not_run() -> None:
    check_has_weights(Path("m.plan"), manifest())
    with pytest.raises(ArtifactError, match="has no weights") as caught:
        check_has_weights(Path("m.plan"), manifest({"strip_weights": True}))
    assert str(caught.value.hint).startswith("resnet-opt refit m.plan MODEL -o")


def test_both_backends_check_the_machine() -> None:
    checking = {name for name, one in backends().items() if isinstance(one, ChecksMachine)}
    assert {"tensorrt", "tensorrt-rtx"} <= checking
    assert not {"openvino", "torch"} & checking  # ONNX Runtime checks for its providers


def test_differences_are_reported_with_the_rebuild_command(
    rtx: TensorRtRtx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All differences at once, through the check that every engine is opened with."""
    settings = {
        "backend": "tensorrt-rtx", "precision": "fp16", "targets": ["sm86"],
        "capabilities": ["sm86"], "profile": [1, 1, 1], "workspace_bytes": 1024, "opt_level": 0,
        "options": {"profiles": [[2, 8, 32]], "cuda_graph": True, "specialization": "lazy"},
    }  # fmt: skip
    plan = Plan(kind="engine", settings=settings, libraries={"tensorrt-rtx": "1.6.0.1"})
    path = tmp_path / "m.rtx"
    artifact = produce(plan, path, lambda p: p.write_bytes(b"engine") and {})
    status = CudaStatus((ADA, HOPPER), "cuda-python", "13.0", None, None)
    monkeypatch.setattr(backend, "cuda_status", lambda: status)
    monkeypatch.setattr(opening, "cuda_status", lambda: status)
    with pytest.raises(ArtifactError) as caught:
        check_opens(rtx, path, artifact.manifest)
    assert caught.value.message.startswith(
        "m.rtx does not fit this machine: TensorRT-RTX 1.6.0.1 at build, "
    )
    assert caught.value.message.endswith("; compiled for sm86, this GPU is sm89")
    assert caught.value.hint == (
        "resnet-opt build model.onnx --precision fp16 --engine tensorrt-rtx --target sm89 "
        "--profile 1:1:1,2:8:32 --workspace 1KiB --opt-level 0 --cuda-graph "
        "--specialization lazy -o m.rtx"
    )
    with pytest.raises(MissingDevice, match=r"does not run on sm90 \(Hopper\)"):
        check_opens(rtx, path, artifact.manifest, device="cuda:1")
    with pytest.raises(UsageError, match="unknown device"):
        check_opens(rtx, path, artifact.manifest, device="gpu")


def test_the_rebuild_command_parses() -> None:
    """The command parses again to all options that the engine was built with."""
    import shlex

    from optimizer.cli.app import parse_command_line
    from optimizer.engines.tensorrt.options import Options

    options = {
        **dict.fromkeys(vars(Options()), True), "profiles": [[1, 2, 3]],
        "hardware_compatibility": "ampere-plus", "specialization": "lazy", "runtime_cache": "k.bin",
    }  # fmt: skip
    command = rebuild_command(
        Path("m.plan"),
        manifest(options, precision="fp16", backend="tensorrt", targets=["sm86"], opt_level=3,
                 workspace_bytes=1, profile=[1, 1, 1], threads=2),
    )  # fmt: skip
    _, *tokens = shlex.split(command)
    name, read = parse_command_line(tokens)
    assert name == "build"
    assert read is not None
    assert read.as_given() == {
        "engine": "tensorrt", "precision": "fp16", "threads": 2, "storage_only": True,
        "target": ["sm86"], "profile": ["1:1:1", "1:2:3"], "workspace": "1B", "opt_level": 3,
        "tf32": True, "sparsity": True, "hardware_compatibility": "ampere-plus",
        "version_compatible": True, "strip_weights": True, "refittable": True, "cuda_graph": True,
        "specialization": "lazy", "runtime_cache": "k.bin",
    }  # fmt: skip
