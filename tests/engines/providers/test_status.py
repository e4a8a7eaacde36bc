"""Whether providers can be used, and what is missing, on this machine."""

from __future__ import annotations

import pytest

from optimizer.engines.cuda import cuda_status
from optimizer.engines.providers import PROVIDERS
from optimizer.engines.providers.status import (
    _hint,
    check_computes,
    check_usable,
    library_of,
    provider_status,
    statuses,
)
from optimizer.errors import EnvironmentFault, MissingDevice, UnsupportedPrecision, UsageError

ON_GPU = ["cuda", "tensorrt", "nv-tensorrt-rtx"]


def test_the_cpu_can_always_be_used() -> None:
    assert provider_status(PROVIDERS["cpu"]).usable


def test_every_provider_is_listed() -> None:
    assert [status.provider for status in statuses()] == list(PROVIDERS)


@pytest.mark.parametrize("name", ON_GPU)
def test_missing_libraries_are_named_with_a_hint(name: str) -> None:
    status = provider_status(PROVIDERS[name])
    if status.usable:
        assert not status.missing
        assert status.hint is None
        return
    assert status.hint
    for library in status.missing:
        assert library in status.reason
        assert library in status.needs
    with pytest.raises(EnvironmentFault, match=f"provider {name} cannot be used here"):
        check_usable(PROVIDERS[name], "cuda:9")


def test_a_missing_driver_is_a_missing_device() -> None:
    if library_of(PROVIDERS["cuda"]) is None:
        pytest.skip("this build of onnxruntime has no CUDA provider")
    status = provider_status(PROVIDERS["cuda"])
    if "libcuda.so.1" not in status.missing:
        pytest.skip("this machine has an NVIDIA driver")
    assert status.no_device == (status.missing == ["libcuda.so.1"])
    assert "NVIDIA GPU and its driver" in str(status.hint)


def test_the_tensorrt_provider_needs_a_major_version() -> None:
    if library_of(PROVIDERS["tensorrt"]) is None:
        pytest.skip("this build of onnxruntime has no TensorRT provider")
    status = provider_status(PROVIDERS["tensorrt"])
    assert any(name.startswith("libnvinfer.so.") for name in status.needs)
    # The CUDA provider is its fallback, so it needs those libraries too.
    assert set(provider_status(PROVIDERS["cuda"]).needs) <= set(status.needs)


def test_an_invalid_device_name_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        check_usable(PROVIDERS["cuda"], "gpu")


def test_a_missing_device_is_refused() -> None:
    if not provider_status(PROVIDERS["cuda"]).usable:
        pytest.skip(provider_status(PROVIDERS["cuda"]).reason)
    devices = cuda_status().devices
    with pytest.raises(MissingDevice, match=f"there is no cuda:{len(devices)}"):
        check_usable(PROVIDERS["cuda"], f"cuda:{len(devices)}")


@pytest.mark.parametrize(
    ("provider", "precision", "capability", "message"),
    [
        ("tensorrt", "fp8", (8, 6), "FP8 needs sm89"),
        ("nv-tensorrt-rtx", "fp16", (9, 0), r"does not run on sm90 \(Hopper\)"),
        ("nv-tensorrt-rtx", "int8", (7, 5), "half precision on sm75"),
    ],
)
def test_an_unsupported_gpu_or_precision_is_refused(
    provider: str, precision: str, capability: tuple[int, int], message: str
) -> None:
    with pytest.raises((MissingDevice, UnsupportedPrecision), match=message):
        check_computes(PROVIDERS[provider], precision, capability)


def test_a_supported_gpu_and_precision_are_accepted() -> None:
    check_computes(PROVIDERS["tensorrt"], "fp8", (9, 0))
    check_computes(PROVIDERS["nv-tensorrt-rtx"], "int8", (8, 6))
    check_computes(PROVIDERS["cuda"], "fp16", (5, 0))


def test_hints_match_the_required_versions() -> None:
    needs = ["libnvinfer.so.10", "libcudnn.so.9", "libcudart.so.13", "libcuda.so.1", "libx.so.2"]
    assert _hint(["libnvinfer.so.10"], needs) == 'pip install "tensorrt-cu13>=10,<11"'
    assert _hint(["libcudnn.so.9", "libcuda.so.1"], needs).startswith(
        "pip install nvidia-cudnn-cu13; run it on"
    )
    assert _hint(["libx.so.2"], needs) == "install the package that contains libx.so.2"
