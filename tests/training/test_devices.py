from __future__ import annotations

import pytest
import torch

from optimizer.errors import EnvironmentFault, MissingDevice, UsageError
from optimizer.options import TrainOptions
from optimizer.training import check_versions, device_of
from optimizer.training.devices import _cudnn_version


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device_of(TrainOptions()).type == expected
    assert device_of(TrainOptions(device="CPU")).type == "cpu"


@pytest.mark.parametrize("device", ["cuda", "gpu", "GPU", "cuda:63"])
def test_a_gpu_that_is_not_there(device: str) -> None:
    if torch.cuda.device_count() and device != "cuda:63":
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingDevice, match="there is no GPU cuda"):
        device_of(TrainOptions(device=device))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "tpu"}, "'tpu' is not a device"),
        ({"device": "cuda:x"}, "'cuda:x' is not a device"),
        ({"device": "cpu", "amp": "fp16"}, "FP16 training needs a GPU"),
        ({"device": "cpu", "sync_batchnorm": True}, "SyncBatchNorm needs GPUs"),
    ],
)
def test_wrong_devices(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        device_of(TrainOptions.parse(given))


def test_minimum_versions() -> None:
    check_versions(TrainOptions(min_python="3.7"))
    with pytest.raises(EnvironmentFault, match=r"Python 99.1 or later is asked for"):
        check_versions(TrainOptions(min_python="99.1"))
    if torch.version.cuda is None:
        with pytest.raises(EnvironmentFault, match="has none"):
            check_versions(TrainOptions(min_cuda="9.0"))
    else:
        check_versions(TrainOptions(min_cuda="9.0", min_cudnn="7.1"))
        with pytest.raises(EnvironmentFault, match=r"CUDA 99.0 or later"):
            check_versions(TrainOptions(min_cuda="99.0"))
    with pytest.raises(UsageError, match="'new' is not a version"):
        TrainOptions(min_cuda="new")


def test_versions_of_cudnn() -> None:
    assert _cudnn_version(92400) == "9.24.0"
    assert _cudnn_version(7605) == "7.6.5"


def test_torch_does_not_share_batchnorm_between_cpus() -> None:
    """The reason why it is refused."""
    from torch import distributed, nn

    if distributed.is_initialized():
        pytest.skip("another test of this process is distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shared = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(2))
        with pytest.raises(ValueError, match="GPU"):
            shared(torch.randn(2, 2, 2, 2))
    finally:
        distributed.destroy_process_group()
