from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from optimizer.artifacts import Cache
from optimizer.data import ImageDataset, Preprocessing, open_dataset
from optimizer.errors import DataError, UsageError
from optimizer.models import Model, load_model
from optimizer.options import TrainOptions
from optimizer.progress import Silent
from optimizer.training import open_training_data, top1, train_checkpoint
from optimizer.training import train as train_network

SMALL: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 16}


def train(images, *, held_out=None, init=None, progress=None, **options):
    """Train with options given as keywords."""
    return train_network(
        images, TrainOptions.parse(options), held_out=held_out, init=init, progress=progress
    )


class Recorder:
    """Progress that records the updates."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.steps = 0
        self.total: int | None = None
        self.notes: list[str | None] = []
        self.finished = False
        self._interrupt_at = interrupt_at

    def start(self, label: str, total: int | None = None) -> None:
        self.total = total

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        self.steps += steps
        self.notes.append(note)
        if self.steps == self._interrupt_at:
            raise KeyboardInterrupt

    def finish(self, note: str | None = None) -> None:
        self.finished = True
        self.notes.append(note)


@pytest.fixture(scope="module")
def few() -> ImageDataset:
    return open_dataset("digits:train", limit=40)


def test_equal_seeds_make_equal_weights(few: ImageDataset) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = train(few, arch="resnet18", seed=3, **SMALL)
    assert torch.equal(torch.rand(2), expected)  # the caller's random state is unchanged
    again = train(few, arch="resnet18", seed=3, **SMALL)
    other = train(few, arch="resnet18", seed=4, **SMALL)
    assert first.model.sha256 == again.model.sha256
    assert first.losses == again.losses
    assert first.model.sha256 != other.model.sha256


def test_the_model_is_ready_to_use(few: ImageDataset) -> None:
    trained = train(few, arch="resnet18", held_out=few, **SMALL)
    model = trained.model
    assert (model.arch, model.num_classes, model.classes) == ("resnet18", 10, few.classes)
    assert model.preprocessing == Preprocessing.digits(8)
    assert not model.preprocessing_assumed
    assert not model.module.training
    assert all(p.device.type == "cpu" for p in model.module.parameters())
    assert trained.n_held_out == 40
    assert trained.top1 == top1(model.module, few, model.preprocessing)
    assert trained.details()["held_out"] == "digits:train"


def test_top1_is_the_fraction_of_correct_images() -> None:
    class ByBrightness(torch.nn.Module):
        """Class 1 for bright images, 0 for dark ones."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.mean(dim=(1, 2, 3)) * self.weight
            return torch.stack([-mean, mean], dim=1)

    digits = open_dataset("digits", limit=100)
    (batch,) = digits.batches(100, Preprocessing.digits(8))
    bright = batch.images.mean(axis=(1, 2, 3)) > 0
    right = replace(digits, labels=bright.astype(np.int64))
    assert top1(ByBrightness(), right, Preprocessing.digits(8)) == 1
    wrong = bright.astype(np.int64)
    wrong[:25] = 1 - wrong[:25]
    assert top1(ByBrightness(), replace(digits, labels=wrong), Preprocessing.digits(8)) == 0.75


def test_every_batch_is_reported(few: ImageDataset) -> None:
    progress = Recorder()
    train(few, arch="resnet18", held_out=few, progress=progress, **{**SMALL, "epochs": 2})
    assert progress.total == 2 * (40 // 16)
    assert progress.steps == progress.total
    assert progress.finished
    assert progress.notes[0] is not None
    assert progress.notes[0].startswith("epoch 1/2, loss ")
    assert progress.notes[-1] is not None
    assert progress.notes[-1].startswith("top-1 ")


def test_a_loss_that_explodes_is_an_error(few: ImageDataset) -> None:
    with pytest.raises(UsageError, match=r"diverged: the loss became (nan|inf).*--lr"):
        train(few, arch="resnet18", lr=1e30, **{**SMALL, "epochs": 3})


def test_an_interrupt_leaves_no_files(few: ImageDataset, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train_checkpoint(
            TrainOptions(arch="resnet18", **SMALL), few, path, progress=Recorder(interrupt_at=2)
        )
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cached_training_is_not_repeated(few: ImageDataset, tmp_path: Path) -> None:
    settings = TrainOptions(arch="resnet18", **SMALL)
    cache = Cache(tmp_path / "cache")

    def run(name: str, progress: Recorder, **change: Any) -> Any:
        path = tmp_path / name / "model.safetensors"
        return train_checkpoint(
            TrainOptions.of(settings, change),
            few,
            path,
            held_out=few,
            cache=cache,
            progress=progress,
        )

    first = run("first", Recorder())
    assert not first.cached
    assert first.manifest.details["n_held_out"] == 40
    model = load_model(first.path)
    assert (model.arch, model.num_classes, model.classes) == ("resnet18", 10, few.classes)
    assert model.preprocessing == Preprocessing.digits(8)

    watched = Recorder()
    assert run("first", watched).cached
    second = run("second", watched)
    assert second.cached
    assert watched.steps == 0
    assert load_model(second.path).sha256 == model.sha256
    assert not run("third", Recorder(), seed=1).cached


def test_training_continues_from_a_model(few: ImageDataset) -> None:
    init = train(few, arch="resnet18", **SMALL).model
    before = init.module.get_parameter("fc.weight").clone()
    # With a tiny learning rate the result shows what training started from.
    same = train(few, arch="resnet18", init=init, lr=1e-12, **SMALL).model
    assert torch.allclose(same.module.get_parameter("fc.weight"), before, atol=1e-6)
    assert torch.equal(init.module.get_parameter("fc.weight"), before)
    with pytest.raises(UsageError, match="is a resnet18, not a resnet34"):
        train(few, arch="resnet34", init=init, **SMALL)


def test_a_loaded_checkpoint_is_trained_further(few: ImageDataset, tmp_path: Path) -> None:
    settings = TrainOptions(arch="resnet18", lr=0.03, **SMALL)
    first = train_checkpoint(settings, few, tmp_path / "first.safetensors")
    init = load_model(first.path)
    further = train_checkpoint(settings, few, tmp_path / "second.safetensors", init=init)
    assert [given.role for given in further.manifest.inputs] == ["data", "init"]
    changed = load_model(further.path).module.state_dict()
    for name, tensor in init.module.state_dict().items():
        assert not torch.equal(changed[name], tensor), name


def test_preprocessing_of_preprocessed_images_is_assumed(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    path = tmp_path / "data.npz"
    images = random.rand(8, 3, 8, 8).astype(np.float32)
    np.savez(path, images=images, labels=np.arange(8) % 2)
    trained = train(open_dataset(path), arch="resnet18", **{**SMALL, "batch_size": 8})
    assert trained.model.preprocessing_assumed
    assert trained.model.classes is None
    assert trained.model.num_classes == 2


def test_other_classes_get_a_new_last_layer(few: ImageDataset) -> None:
    init = load_model("resnet18:random:1000", image_size=8)
    model = train(few, arch="resnet18", init=init, lr=1e-12, **SMALL).model
    assert model.num_classes == 10
    assert model.preprocessing == init.preprocessing
    kept = "layer3.1.conv2.weight"
    assert torch.allclose(
        model.module.get_parameter(kept), init.module.get_parameter(kept), atol=1e-6
    )


def test_training_on_image_folders(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    for name, level in (("bright", 200), ("dark", 30)):
        (tmp_path / name).mkdir()
        for i in range(20):
            pixels = random.randint(level - 20, level + 20, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "dark" / "3.png").write_bytes(b"")
    data, held_out = open_training_data(str(tmp_path), skip_bad_images=True)
    settings = {"image_size": 8, "epochs": 4, "batch_size": 8, "lr": 0.02}
    trained = train(data, arch="resnet18", held_out=held_out, **settings)
    assert trained.top1 == 1
    assert trained.model.classes == ("bright", "dark")
    assert trained.model.preprocessing == Preprocessing.imagenet(8)


def test_weights_do_not_depend_on_keeping_images_in_memory(
    few: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train(few, arch="resnet18", **SMALL).model
    monkeypatch.setattr("optimizer.training.training_images._MAX_IN_MEMORY_BYTES", 0)
    assert train(few, arch="resnet18", **SMALL).model.sha256 == kept.sha256


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"lr": float("nan")}, {"image_size": 0}],
)
def test_options_out_of_range_are_rejected(wrong: dict[str, Any], few: ImageDataset) -> None:
    with pytest.raises(UsageError):
        train(few, arch="resnet18", **{**SMALL, **wrong})


def test_one_image_is_too_few(few: ImageDataset) -> None:
    with pytest.raises(DataError, match="too few"):
        train(few.select(np.array([0])), arch="resnet18", **SMALL)


def test_held_out_classes_must_match(few: ImageDataset) -> None:
    other = replace(few, classes=tuple("abcdefghij"))
    with pytest.raises(DataError, match="which the model does not have"):
        train(few, arch="resnet18", held_out=other, **SMALL)


@pytest.mark.long
def test_resnet50_learns_the_digits(digits_checkpoint: Path) -> None:
    model: Model = load_model(digits_checkpoint)
    assert model.arch == "resnet50"
    accuracy = top1(model.module, open_dataset("digits:test"), model.preprocessing)
    assert accuracy >= 0.97


@pytest.mark.long
def test_resnet18_learns_the_digits_in_two_epochs() -> None:
    """The main job's test trains it too, with a lower threshold."""
    data, held_out = open_training_data("digits")
    trained = train(data, arch="resnet18", held_out=held_out, epochs=2, lr=0.03, progress=Silent())
    assert trained.top1 is not None
    assert trained.top1 >= 0.94
