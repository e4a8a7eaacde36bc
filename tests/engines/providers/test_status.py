"""Whether a provider can be used here, and what is missing: asked of this very machine."""

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


def test_every_provider_is_told_of() -> None:
    assert [found.provider for found in statuses()] == list(PROVIDERS)


@pytest.mark.parametrize("name", ON_GPU)
def test_what_is_missing_is_named_and_fixed(name: str) -> None:
    found = provider_status(PROVIDERS[name])
    if found.usable:
        assert not found.missing
        assert found.hint is None
        return
    assert found.hint
    for library in found.missing:
        assert library in found.reason
        assert library in found.needs
    with pytest.raises(EnvironmentFault, match=f"provider {name} cannot be used here"):
        check_usable(PROVIDERS[name], "cuda:9")


def test_a_missing_driver_is_a_missing_device() -> None:
    if library_of(PROVIDERS["cuda"]) is None:
        pytest.skip("this build of onnxruntime has no CUDA provider")
    found = provider_status(PROVIDERS["cuda"])
    if "libcuda.so.1" not in found.missing:
        pytest.skip("this machine has an NVIDIA driver")
    assert found.no_device == (found.missing == ["libcuda.so.1"])
    assert "NVIDIA GPU and its driver" in str(found.hint)


def test_the_tensorrt_provider_tells_its_major_version() -> None:
    if library_of(PROVIDERS["tensorrt"]) is None:
        pytest.skip("this build of onnxruntime has no TensorRT provider")
    found = provider_status(PROVIDERS["tensorrt"])
    assert any(name.startswith("libnvinfer.so.") for name in found.needs)
    # What TensorRT leaves is the CUDA provider's, so it needs that one's libraries too.
    assert set(provider_status(PROVIDERS["cuda"]).needs) <= set(found.needs)


def test_a_device_has_a_name_like_cuda_1() -> None:
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        check_usable(PROVIDERS["cuda"], "gpu")


def test_a_device_that_is_not_there_is_refused() -> None:
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
def test_a_gpu_that_does_not_compute_it_is_refused(
    provider: str, precision: str, capability: tuple[int, int], message: str
) -> None:
    with pytest.raises((MissingDevice, UnsupportedPrecision), match=message):
        check_computes(PROVIDERS[provider], precision, capability)


def test_a_gpu_that_computes_it_is_not_refused() -> None:
    check_computes(PROVIDERS["tensorrt"], "fp8", (9, 0))
    check_computes(PROVIDERS["nv-tensorrt-rtx"], "int8", (8, 6))
    check_computes(PROVIDERS["cuda"], "fp16", (5, 0))


def test_commands_that_mend_fit_the_versions() -> None:
    needs = ["libnvinfer.so.10", "libcudnn.so.9", "libcudart.so.13", "libcuda.so.1", "libx.so.2"]
    assert _hint(["libnvinfer.so.10"], needs) == 'pip install "tensorrt-cu13>=10,<11"'
    assert _hint(["libcudnn.so.9", "libcuda.so.1"], needs).startswith(
        "pip install nvidia-cudnn-cu13; run it on"
    )
    assert _hint(["libx.so.2"], needs) == "install what provides libx.so.2"
