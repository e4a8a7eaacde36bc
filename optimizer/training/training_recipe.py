"""Training recipes: YAML files of hyperparameters, which options override key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import UsageError
from optimizer.options import TrainOptions
from optimizer.recipe import read_yaml

__all__ = ["RECIPES", "complete"]

_FOLDER = Path(__file__).parent.parent / "recipes" / "training"
RECIPES = (
    "finetune",
    "scratch",
    "digits",
    "detection",
    "qat",
    "tv-v1",
    "tv-v2",
    "a1",
    "a2",
    "a3",
    "prune",
)
_ABOUT = ("about", "source", "base")
_KEYS = {
    "image_size", "epochs", "batch_size", "accumulate", "optimizer", "lr", "lr_batch",
    "backbone_rate", "clip_grad", "momentum",
    "weight_decay", "scheduler", "warmup", "lr_decay_rate", "lr_step", "loss", "label_smoothing",
    "mixup", "cutmix", "augment", "random_erasing", "ema", "val_every",
}  # fmt: skip


def complete(
    options: TrainOptions, *, default: str, image_size: int | None = None, files: bool = True
) -> TrainOptions:
    """Fill in what is not given from the recipe.

    Args:
        options: The options as given.
        default: The recipe if the options name none.
        image_size: The image size if neither the options nor the recipe have one.
        files: Whether the images are files; others may be small, and are shifted by default.

    Raises:
        UsageError: There is no such recipe, or it has an invalid key or value.
    """
    given = options.as_given()
    name = str(options.recipe or default)
    values = _read(name)
    if "lr_decay_rate" in given and "scheduler" not in given:
        given["scheduler"] = "step"
    if not files and options.recipe is None:
        values["augment"] = "shift"
    merged = {**values, **given, "recipe": name}
    if merged.get("image_size") is None:
        merged["image_size"] = image_size or 224
    if merged["scheduler"] == "step":
        merged["lr_step"] = merged.get("lr_step") or max(1, int(merged["epochs"]) // 3)
        merged["lr_decay_rate"] = merged.get("lr_decay_rate") or 0.1
    return TrainOptions.parse(merged)


def _read(name: str, users: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a recipe and of the recipes that it is based on."""
    if name in users:
        raise UsageError(f"the recipe {name} is based on itself", hint="correct its key base")
    if name in RECIPES:
        path = _FOLDER / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    else:
        raise UsageError(
            f"there is no training recipe {name!r}",
            hint=f"one of {', '.join(RECIPES)}, or a YAML file",
        )
    raw = read_yaml(path)
    base = raw.get("base") or (None if name == "digits" else "digits")
    inherited = _read(str(base), (*users, name)) if base else {}
    return {**inherited, **_checked(raw, path.name)}


def _checked(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    values = {key: value for key, value in raw.items() if key not in _ABOUT}
    for key in values:
        if key not in _KEYS and key in TrainOptions.model_fields:
            raise UsageError(
                f"{name}: {key} is not a hyperparameter",
                hint=f"pass it as --{key.replace('_', '-')}",
            )
    TrainOptions.parse(values, name)
    return values
