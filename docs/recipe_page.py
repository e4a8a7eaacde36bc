"""Writes docs/recipe.md from the options themselves: ``python docs/recipe_page.py``.

The text around the tables is in this file; keys, defaults and descriptions are the fields of the
models in `optimizer.options` and `optimizer.recipe`, so the page cannot differ from the program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from optimizer.options import AccuracyOptions, GraphOptions, OptionInfo, Options, TrainOptions
from optimizer.recipe import (
    BuildSection,
    CalibrateSection,
    MeasureSection,
    PruneSection,
    Recipe,
)

PAGE = Path(__file__).parent / "recipe.md"
BUILD = """One section, or a list of them: every precision of a section is built for every engine of it. An
option that belongs to some engines is given to those of the section. `mixed` searches on the
calibration data for the `max_drop` of `validate`. OpenVINO is compiled for each of `fixed_batch`, by
default for the batches of `bench`."""
PRUNE = """Present only if the run also makes a [pruned network](pruning.md). Everything of `build` is then
built of both networks, and both are judged against the one before, by `validate`. It takes one aim:
`speedup`, `max_latency` or `keep_flops`."""
SECTIONS: dict[str, tuple[type[Options], str]] = {
    "train": (
        TrainOptions,
        "Present only if the model is trained by the run; then `model` is absent.",
    ),
    "prune": (PruneSection, PRUNE),
    "export": (GraphOptions, ""),
    "calibrate": (
        CalibrateSection,
        "Without `calib`, a part of the validation data is set apart and never validated on.",
    ),
    "build": (
        BuildSection,
        BUILD,
    ),
    "validate": (AccuracyOptions, "Without this section nothing is validated."),
    "bench": (
        MeasureSection,
        "PyTorch is measured beside the engines. With `bench: null` nothing is measured.",
    ),
}
HEAD = """# Recipes

A recipe is one execution of the main job as a YAML file. `resnet-opt run --save-recipe recipe.yaml`
writes what the flags on that command line would run; `resnet-opt run recipe.yaml` runs it, and flags
beside it override the file. Relative paths start at the working folder. Every run keeps its recipe as
`recipe.yaml` in its folder.

Keys are the long flags of the command line in snake_case, one section per stage. Where a stage can be
done several ways, a key takes a list or comma-separated words. An unknown key, or a value that cannot be
read, is refused by name before anything is made.

```yaml
title: resnet50 for two cards and this CPU
model: resnet50:IMAGENET1K_V2
export: {image_size: 224}
calibrate: {calib: /data/imagenet/train, calib_images: 512}
build:
  - {engine: openvino, precision: "fp32,int8,mixed"}
  - {engine: tensorrt-rtx, precision: "fp16,int8", target: "sm86,sm89", profile: "1:8:32"}
validate: {data: /data/imagenet/val, max_drop: 1pp}
bench: {batch: "1,8", duration: 10s}
```

This page is written by `python docs/recipe_page.py`.
"""


def page() -> str:
    """The page as Markdown."""
    top = [
        (name, field)
        for name, field, _ in Recipe.declared()
        if (field.alias or name) not in SECTIONS
    ]
    parts = [HEAD, "## Top level\n", _table(top)]
    for name, (model, text) in SECTIONS.items():
        parts += [f"## {name}\n", *([f"{text}\n"] if text else [])]
        parts.append(_table([(key, field) for key, field, _ in model.declared()]))
    return "\n".join(parts)


def _table(fields: list[tuple[str, FieldInfo]]) -> str:
    rows = [f"| `{name}` | {_default(field)} | {_meaning(field)} |" for name, field in fields]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default: Any = field.default
    if isinstance(default, bool):
        return str(default).lower()
    return "–" if default in (None, (), {}) else str(default)


def _meaning(field: FieldInfo) -> str:
    engines = OptionInfo.of(field).engines
    owners = f" ({', '.join(engines)})" if engines else ""
    return f"{(field.description or '').rstrip('.')}{owners}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
