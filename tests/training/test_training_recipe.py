from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optimizer.errors import UsageError
from optimizer.options import TrainOptions
from optimizer.training.optimization import build_optimizer, build_schedule, peak_rate
from optimizer.training.training_recipe import RECIPES, complete


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete(name: str) -> None:
    found = complete(TrainOptions(recipe=name), default="digits", image_size=96)
    optional = {"lr_batch", "warmup", "lr_decay_rate", "lr_step"}
    for key, field in TrainOptions.model_fields.items():
        hyperparameter = field.default is None and key in complete_keys() - optional
        assert not hyperparameter or getattr(found, key) is not None, key
    assert found.recipe == name


def complete_keys() -> set[str]:
    from optimizer.training import training_recipe

    return set(training_recipe._KEYS)


def test_options_override_the_recipe() -> None:
    found = complete(TrainOptions(recipe="tv-v2", epochs=3, mixup=0), default="digits")
    assert (found.epochs, found.mixup, found.cutmix, found.image_size) == (3, 0, 1.0, 176)


def test_a_fine_tuned_model_keeps_its_size() -> None:
    assert complete(TrainOptions(), default="finetune", image_size=96).image_size == 96
    assert complete(TrainOptions(image_size=64), default="finetune", image_size=96).image_size == 64


def test_a_decay_rate_means_steps() -> None:
    found = complete(TrainOptions(lr_decay_rate=0.1, epochs=9), default="digits")
    assert (found.scheduler, found.lr_step, found.lr_decay_rate) == ("step", 3, 0.1)


def test_recipes_of_users(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: tv-v1\nlr: 0.2\nsource: our wiki\n")
    found = complete(TrainOptions(recipe=str(mine)), default="digits")
    assert (found.lr, found.epochs, found.lr_step) == (0.2, 90, 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: fast", r"mine.yaml, lr: 'fast' is not a number"),
        ("rate: 1", r"mine.yaml, rate: no such option"),
        ("resume: true", "resume is not a hyperparameter.*--resume"),
        ("base: mine", "there is no training recipe 'mine'"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    with pytest.raises(UsageError, match=message):
        complete(TrainOptions(recipe=str(mine)), default="digits")


def test_a_recipe_based_on_itself(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: {mine}")
    with pytest.raises(UsageError, match="based on itself"):
        complete(TrainOptions(recipe=str(mine)), default="digits")


def rates(settings: TrainOptions, steps_per_epoch: int) -> list[float]:
    module = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(module, settings, peak_rate(settings, 32))
    schedule = build_schedule(optimizer, settings, peak_rate(settings, 32), steps_per_epoch)
    found = []
    assert settings.epochs is not None
    for _ in range(settings.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules() -> None:
    step = complete(TrainOptions(lr=1, lr_decay_rate=0.1, lr_step=2, epochs=6), default="digits")
    assert rates(step, 1) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = complete(TrainOptions(lr=1, scheduler="cosine", warmup=1, epochs=4), default="digits")
    found = rates(cosine, 4)
    assert found[0] == pytest.approx(0.01)
    assert max(found) == found[4] == pytest.approx(1)
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[-1] < 0.1


def test_the_rate_is_scaled_to_the_batch_on_request() -> None:
    plain = complete(TrainOptions(lr=0.1), default="digits")
    scaled = complete(TrainOptions(lr=0.1, lr_batch=256), default="digits")
    assert peak_rate(plain, 512) == 0.1
    assert peak_rate(scaled, 512) == pytest.approx(0.2)


def test_only_matrices_decay() -> None:
    settings = complete(TrainOptions(optimizer="adamw", weight_decay=0.5), default="digits")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    groups = build_optimizer(module, settings, 0.1).param_groups
    shapes = {g["weight_decay"]: [tuple(p.shape) for p in g["params"]] for g in groups}
    assert shapes == {0.5: [(4, 3, 1, 1)], 0.0: [(4,), (4,), (4,)]}


def test_lamb_is_timms() -> None:
    pytest.importorskip("timm", reason="LAMB is timm's")
    settings = complete(TrainOptions(optimizer="lamb"), default="digits")
    optimizer = build_optimizer(torch.nn.Linear(2, 2), settings, 0.1)
    assert type(optimizer).__module__.startswith("timm")
