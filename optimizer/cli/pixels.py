"""Commands about images: preprocess."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli import options as opt

if TYPE_CHECKING:
    from optimizer.evaluation.decoders import Difference

__all__ = ["preprocess"]


def preprocess(
    diff: Annotated[str, typer.Option("--diff", help="A folder of images.", metavar="DATA")],
    model: Annotated[
        str | None, typer.Option(help="Its preprocessing, and how many predictions change.")
    ] = None,
    arch: opt.Arch = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Take a stratified subset of this many images.")
    ] = 200,
    skip_bad_images: opt.SkipBadImages = False,
    as_json: opt.Json = False,
) -> None:
    """Hold decoders and resizers against each other on the same images.

    Example: resnet-opt preprocess --diff data/val --model resnet50:IMAGENET1K_V2
    """
    from optimizer import verbs
    from optimizer.cli.console import progress

    with progress() as bars:
        found = verbs.compare_decoders(
            diff,
            model=model,
            arch=arch,
            limit=limit,
            skip_bad_images=skip_bad_images,
            progress=bars,
        )
    if as_json:
        raw = [{k: v for k, v in asdict(one).items() if k[0] != "_"} for one in found]
        typer.echo(json.dumps(raw, indent=2))
        return
    typer.echo(f"{found[0].images} images, against what resnet-opt reads")
    for one in found:
        typer.echo(f"  {one.pipeline}\n    {_words(one)}")


def _words(one: Difference) -> str:
    if not one.differing:
        return "the same pixels"
    flips = "" if one.flips is None else f"; {one.flips} predictions change"
    return (
        f"{one.differing} images differ, by {one.mean:.3f} of 255 levels on average and "
        f"{one.largest} at most; most of all {one.worst}{flips}"
    )
