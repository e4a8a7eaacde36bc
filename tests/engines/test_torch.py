"""PyTorch as its users run it: variants on this machine's CPU, layouts and settings for a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import optimizer.engines.torch as torch_engine
from optimizer.engines import Opening, open_streams
from optimizer.engines.torch import EAGER, VARIANTS, TorchEager, _layout
from optimizer.errors import UsageError
from optimizer.gpu_software import Installed
from optimizer.profiling.engine_facts import EngineFacts, pytorch_baseline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from optimizer.models import load_model, save_checkpoint

    path = tmp_path_factory.mktemp("torch") / "model.safetensors"
    save_checkpoint(load_model("resnet18:random", image_size=32), path, details={})
    return path


@pytest.mark.parametrize(
    ("variant", "tolerance"),
    [
        (None, 1e-4),
        ("torch-fp16", 2e-2),
        pytest.param("torch-compile", 1e-3, marks=pytest.mark.long),
    ],
)
def test_a_variant_computes_the_same(
    checkpoint: Path, variant: str | None, tolerance: float
) -> None:
    batch = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    (eager,) = open_streams(checkpoint, 1, threads=1)
    expected = eager.run(batch)
    (session,) = open_streams(checkpoint, 1, threads=1, opening=Opening(variant))
    found = session.run(batch)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    precision = "fp16" if variant == "torch-fp16" else "fp32"
    assert {layer.precision for layer in session.layers()} == {precision}
    if variant == "torch-fp16":
        assert np.abs(found - expected).max() > 0, "it was really computed in half precision"
        assert {x.precision for x in session.time_layers(batch, 1)} == {"fp16"}  # type: ignore[attr-defined]
    session.close()


def test_a_compiled_network_has_no_layers_to_time(checkpoint: Path) -> None:
    (session,) = TorchEager().load_with(checkpoint, Opening("torch-compile"), streams=1, threads=1)
    with pytest.raises(UsageError, match="kernels of several modules"):
        session.time_layers(np.zeros((1, 3, 32, 32), np.float32), 1)


def test_an_unknown_variant(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="there is no torch-int8") as caught:
        open_streams(checkpoint, 1, opening=Opening("torch-int8"))
    assert caught.value.hint == "one of torch-fp16, torch-compile"


def test_the_layout_that_is_fast() -> None:
    import torch

    half = VARIANTS["torch-fp16"]
    assert _layout("cuda", EAGER) is torch.contiguous_format
    assert _layout("cuda", VARIANTS["torch-compile"]) is torch.contiguous_format
    assert _layout("cuda", half) is torch.channels_last
    assert _layout("cpu", EAGER) is torch.channels_last


SETTINGS = """
import torch
from optimizer.engines.torch import _set_up_cuda
_set_up_cuda()
print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
      torch.backends.cudnn.benchmark, torch.backends.cudnn.conv.fp32_precision != "tf32")
"""


def test_tf32_is_off_in_an_interface_that_can_still_be_read() -> None:
    """In a process of its own: the settings are those of the whole process."""
    outcome = subprocess.run(
        [sys.executable, "-c", SETTINGS], capture_output=True, text=True, check=False, timeout=120
    )
    assert outcome.stdout.split() == ["False", "False", "True", "True"], outcome.stderr


def test_a_further_baseline_needs_a_checkpoint() -> None:
    engine = EngineFacts(path=Path("m.plan"), name="m.plan", backend="tensorrt", precision="fp16")
    with pytest.raises(UsageError, match="needs a checkpoint among the engines") as caught:
        pytorch_baseline([engine], "torch-fp16")
    assert "model.safetensors" in str(caught.value.hint)
    torch = EngineFacts(path=Path("m.pt"), name="m.pt", backend="torch", precision="fp32")
    found = pytorch_baseline([engine, torch], "torch-fp16")
    assert found.name == "m.pt (PyTorch eager, FP16)"
    assert (found.precision, found.variant) == ("fp16", "torch-fp16")
    with pytest.raises(UsageError, match="unknown baseline 'torch-int8'"):
        pytorch_baseline([torch], "torch-int8")


@pytest.mark.long
def test_half_precision_as_the_baseline_of_a_bench(checkpoint: Path, tmp_path: Path) -> None:
    """It is measured beside the checkpoint as it is, and the report names which is which."""
    from optimizer.profiling.benchmark import bench

    found = bench(
        [checkpoint],
        duration="0.3s",
        threads=1,
        raw_dir=tmp_path,
        against="torch-fp16",
    )
    by_name = {one.name: one for one in found.engines}
    half = by_name["model.safetensors (PyTorch eager, FP16)"]
    assert (half.status, half.precision) == ("ok", "fp16")
    assert by_name["model.safetensors"].precision == "fp32"
    assert found.settings["baseline"] == half.name
    assert found.settings["gate"]
    (ratio,) = found.comparisons
    assert (ratio.a, ratio.b) == (half.name, "model.safetensors")
    assert len(list(tmp_path.glob("*.npz"))) >= 2


@pytest.mark.parametrize(
    ("devices", "installed", "where"),
    [
        (0, ["torch"], "eager on the CPU, channels-last"),
        (1, ["cuda-python", "torch"], "on the GPU beside engines of a GPU"),
        (1, ["cuda-python"], "this build of PyTorch has no CUDA"),
    ],
)
def test_doctor_says_where_pytorch_runs(
    monkeypatch: pytest.MonkeyPatch, devices: int, installed: list[str], where: str
) -> None:
    monkeypatch.setattr(torch_engine, "cuda_devices", lambda: [object()] * devices)
    libraries = [Installed(name=name, version="1", cuda=13) for name in installed]
    monkeypatch.setattr(torch_engine, "installed_libraries", lambda: libraries)
    assert where in torch_engine.TorchEager().availability().reason
