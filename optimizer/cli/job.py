"""Commands for the main job: run and demo."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import options as opt

if TYPE_CHECKING:
    from optimizer.recipe import Recipe

__all__ = ["demo", "run"]

Folder = Annotated[
    Path | None, typer.Option("-o", "--output", help="The run folder; default: runs/<name>.")
]
SaveRecipe = Annotated[
    Path | None, typer.Option(help="Write the recipe here and stop; edit it, give it to run.")
]


def run(
    source: Annotated[
        str, typer.Argument(help="A recipe (.yaml), or a model as for resnet-opt export.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images to validate on: a folder, file.npz, digits:test."),
    ] = None,
    calib: opt.Calib = None,
    calib_images: Annotated[
        int | None, typer.Option(min=8, help="Calibration images; default 256.")
    ] = None,
    arch: opt.Arch = None,
    image_size: opt.ImageSize = None,
    precision: Annotated[str | None, typer.Option(help="fp32,fp16,bf16,int8,fp8,mixed.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, or openvino,onnxruntime,….")] = None,
    target: Annotated[str | None, typer.Option(help="GPUs for TensorRT-RTX: sm86,sm89.")] = None,
    batch: Annotated[str | None, typer.Option(help="Batch sizes to measure, 1,8.")] = None,
    duration: Annotated[str | None, typer.Option(help="Time an engine and batch size.")] = None,
    threads: opt.Threads = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Validate on a subset.")] = None,
    max_drop: Annotated[str | None, typer.Option(help="Largest loss of top-1: 1pp.")] = None,
    max_flips: Annotated[str | None, typer.Option(help="Largest share of changed classes.")] = None,
    skip_bad_images: opt.SkipBadImages = False,
    workers: opt.Workers = None,
    output: Folder = None,
    save_recipe: SaveRecipe = None,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Take a model from checkpoint to engines and report, in one folder.

    Example: resnet-opt run resnet50:IMAGENET1K_V2 --data /data/imagenet/val

    Example: resnet-opt run recipe.yaml -o runs/tuesday
    """
    raw = _raw_recipe(source)
    _set(raw, "arch", arch)
    _set(raw, "export.image_size", image_size)
    if data is not None:
        _set(raw, "validate.data", data)
    for key, value in {
        "validate.limit": limit,
        "validate.max_drop": max_drop,
        "validate.max_flips": max_flips,
        "validate.skip_bad_images": skip_bad_images or None,
        "validate.workers": workers if "validate" in raw else None,
        "calibrate.workers": workers,
        "calibrate.calib": calib,
        "calibrate.calib_images": calib_images,
        "bench.batch": batch,
        "bench.duration": duration,
        "bench.threads": threads,
    }.items():
        _set(raw, key, value)
    _set_builds(raw, precision=precision, engine=engine, target=target)
    name = Path(source).stem if source.endswith((".yaml", ".yml")) else source.replace(":", "-")
    _execute(raw, output or Path("runs") / Path(name).name, save_recipe, no_cache, as_json)


def demo(
    arch: Annotated[str, typer.Option(help="resnet18, 34, 50, 101 or 152.")] = "resnet50",
    duration: Annotated[str | None, typer.Option(help="Time an engine and batch size.")] = None,
    output: Folder = None,
    save_recipe: SaveRecipe = None,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Run the main job on bundled real data; nothing is downloaded.

    It trains the network on 1,257 handwritten digits, takes it to FP32, FP16, BF16 and INT8 as OpenVINO,
    ONNX Runtime and TensorRT-RTX compute them, validates on 540 others, measures, and writes the report.

    Example: resnet-opt demo
    """
    import yaml

    recipe = Path(__file__).parent.parent / "recipes" / "demo.yaml"
    raw = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    raw["train"]["arch"] = arch
    _set(raw, "bench.duration", duration)
    folder = output or Path("runs") / ("demo" if arch == "resnet50" else f"demo-{arch}")
    _execute(raw, folder, save_recipe, no_cache, as_json)


# --- the recipe ------------------------------------------------------------------------------------


def _raw_recipe(source: str) -> dict[str, Any]:
    from optimizer.recipe import load_recipe

    if source.endswith((".yaml", ".yml")):
        return load_recipe(Path(source)).model_dump(mode="json", exclude_unset=True)
    return {"title": source, "model": source, "build": _default_builds()}


def _default_builds() -> list[dict[str, Any]]:
    """Every engine that this machine can build, with the precisions it computes."""
    from optimizer.engines import backends

    builds: list[dict[str, Any]] = []
    for name, backend in backends().items():
        found = backend.availability()
        if name == "torch" or not found.can_build:
            continue
        if name.startswith("tensorrt"):
            builds.append({"engine": name, "precision": ["fp32", "fp16", "int8"]})
        else:
            builds.append({"engine": name, "precision": ["fp32", "int8"]})
    return builds


def _set(raw: dict[str, Any], key: str, value: object) -> None:
    """Put a flag over the recipe's own value; a flag that was not given changes nothing."""
    if value is None:
        return
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    raw[last] = value


def _set_builds(raw: dict[str, Any], **flags: str | None) -> None:
    """A precision or an engine takes the place of the recipe's builds; a target goes to those it has."""
    from optimizer.errors import UsageError

    given = {key: value for key, value in flags.items() if value is not None}
    if not given:
        return
    if "precision" in given or "engine" in given:
        raw["build"] = [given]
        return
    builds = raw.setdefault("build", [{}])
    takers = [section for section in builds if _takes_target(section)]
    if not takers:
        raise UsageError(
            "--target is for TensorRT-RTX, which is not built", mend="--engine tensorrt-rtx"
        )
    for section in takers:
        section.update(given)


def _takes_target(section: dict[str, Any]) -> bool:
    engines = section.get("engine", "auto")
    names = engines.split(",") if isinstance(engines, str) else engines
    return any(name.strip() in {"auto", "tensorrt-rtx"} for name in names)


def _execute(
    raw: dict[str, Any], folder: Path, save_recipe: Path | None, no_cache: bool, as_json: bool
) -> None:
    from optimizer.recipe import parse_recipe

    recipe = parse_recipe(raw)
    if save_recipe is not None:
        from optimizer import recipe as room

        room.save_recipe(recipe, save_recipe)
        typer.echo(str(save_recipe))
        return
    _run(recipe, folder, no_cache, as_json)


def _run(recipe: Recipe, folder: Path, no_cache: bool, as_json: bool) -> None:
    from optimizer import pipeline
    from optimizer.artifacts import check_output
    from optimizer.cli.console import progress
    from optimizer.errors import UsageError

    command = shlex.join(["resnet-opt", *sys.argv[1:]])
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", mend="-o with the name of a folder")
    check_output(folder / "results.json")
    with progress() as bars:
        result = pipeline.run(
            recipe,
            folder,
            command=command,
            cache=opt.cache_of(no_cache),  # type: ignore[arg-type]
            progress=bars,
        )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        from rich.console import Console

        from optimizer.reporting import render_console

        out = Console()
        if not out.is_terminal:
            out = Console(width=120)  # a log has no width of its own; 80 would cut the table
        out.print(render_console(result))
        typer.echo(f"report   {folder / 'report.html'}")
    error = pipeline.verdict_of(result)
    if error is not None:
        raise error
