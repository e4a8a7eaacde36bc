"""A small network trained on tinted digits, with all files from the export to the engine."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from optimizer.data import ImageDataset, Preprocessing, open_dataset
from optimizer.engines import BuildSettings
from optimizer.engines.building import build_engine
from optimizer.exporting import export_onnx
from optimizer.models import Model, build_module, load_model, save_checkpoint, weights_digest
from optimizer.precision import calibrate, quantize
from optimizer.results import BlockNoise
from tests.sharing import Shared

PREPROCESSING = Preprocessing(resize=16, crop=16, mean=(0.25, 0.2, 0.15), std=(0.35, 0.3, 0.25))


def tinted(name: str, path: Path) -> ImageDataset:
    """Real digits, even ones tinted red and odd ones blue, so that colour order matters."""
    gray = open_dataset(name)
    plain = Preprocessing(resize=None, crop=8)
    (pixels,) = gray.batches(len(gray), plain, as_uint8=True)
    tint = np.where((gray.labels % 2)[:, None] == 0, [1.0, 0.6, 0.2], [0.2, 0.6, 1.0])
    images = np.rint(pixels.images * tint[:, None, None, :]).astype(np.uint8)
    assert gray.classes is not None
    np.savez(path, images=images, labels=gray.labels, classes=np.array(gray.classes))
    return open_dataset(path)


@dataclass(frozen=True)
class Workshop:
    """Artifacts created once per session for all tests; read-only."""

    folder: Path
    model: Model
    checkpoint: Path
    other_checkpoint: Path
    onnx: Path
    statistics: Path
    int8: Path
    engine: Path
    data: ImageDataset

    @property
    def few(self) -> ImageDataset:
        """A hundred of the test images."""
        return self.data.select(np.arange(100, dtype=np.int64))


def largest_fall(blocks: list[BlockNoise]) -> tuple[str, float] | None:
    """The module after which the signal-to-noise ratio falls most, and the fall in decibels."""
    noisy = [(b.module, b.sqnr_db) for b in blocks if b.sqnr_db is not None]
    falls = [(module, before - after) for (_, before), (module, after) in itertools.pairwise(noisy)]
    return max(falls, key=lambda fall: fall[1], default=None)


def trained(data: ImageDataset, seed: int) -> Model:
    """A ResNet-18 at 16 px after three epochs: 20 s of one core, about 97 % top-1."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other
    torch.manual_seed(seed)
    module = build_module("resnet18", 10, zero_init_residual=True).train()
    images = np.concatenate([batch.images for batch in data.batches(256, PREPROCESSING)])
    inputs, labels = torch.from_numpy(images), torch.from_numpy(data.labels)
    steps = [chunk for _ in range(3) for chunk in torch.randperm(len(inputs)).split(64)]
    optimizer = torch.optim.SGD(module.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=len(steps))
    for chosen in steps:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    module.eval()
    return Model(
        module=module,
        arch="resnet18",
        classes=data.classes,
        num_classes=10,
        preprocessing=PREPROCESSING,
        source=f"resnet18 trained on tinted digits, seed {seed}",
        sha256=weights_digest(module.state_dict()),
    )


def _checkpoint(shared: Shared, data: ImageDataset, seed: int) -> Path:
    """Train, or take the checkpoint that an earlier run trained in the same way."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    name = f"seed{seed}.safetensors"

    def make(folder: Path) -> None:
        save_checkpoint(trained(data, seed), folder / name, details={})

    return shared(f"tinted-{code}-{seed}", make, keep=True) / name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def workshop(shared: Shared) -> Workshop:
    def make(folder: Path) -> None:
        train = tinted("digits:train", folder / "train.npz")
        tinted("digits:test", folder / "test.npz")
        onnx, int8 = folder / "model.onnx", folder / "int8.onnx"
        export_onnx(load_model(str(_checkpoint(shared, train, seed=0))), onnx)
        statistics = folder / "statistics.npz"
        calibration = train.select(np.arange(128, dtype=np.int64))
        calibrate(onnx, calibration, statistics)
        quantize(onnx, int8, precision="int8", target="openvino", stats=statistics)
        build_engine(int8, folder / "int8.blob", "openvino", BuildSettings(precision="int8"))

    folder = shared("workshop", make)
    train = open_dataset(folder / "train.npz")
    checkpoint, other = (_checkpoint(shared, train, seed) for seed in (0, 1))
    return Workshop(
        folder=folder,
        model=load_model(str(checkpoint)),
        checkpoint=checkpoint,
        other_checkpoint=other,
        onnx=folder / "model.onnx",
        statistics=folder / "statistics.npz",
        int8=folder / "int8.onnx",
        engine=folder / "int8.blob",
        data=open_dataset(folder / "test.npz"),
    )
