"""Commands that make artifacts: train, export, calibrate, quantize."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli import options as opt
from optimizer.cli.made import as_detail, bars, raise_for, say, search_result, searched

if TYPE_CHECKING:
    from optimizer.precision.int8.halves import Moved

__all__ = ["calibrate", "export", "quantize", "train"]


def train(
    output: opt.Output,
    arch: Annotated[str, typer.Option(help="resnet18, 34, 50, 101 or 152.")] = "resnet50",
    data: Annotated[
        str, typer.Option("--data", help="Training images: digits:train, a folder, file.npz.")
    ] = "digits:train",
    held_out: Annotated[
        str | None, typer.Option(help="Images to measure on afterwards; digits has its own.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, help="Side of the images in pixels.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 8,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate of the cycle.")] = None,
    seed: Annotated[int, typer.Option(help="Decides weights, order and augmentation.")] = 0,
    init: Annotated[str | None, typer.Option(help="A model to train further.")] = None,
    skip_bad_images: opt.SkipBadImages = False,
    workers: opt.Workers = None,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Train a ResNet into a checkpoint.

    Example: resnet-opt train --arch resnet50 --data digits:train -o model.safetensors
    """
    from optimizer import verbs

    with bars() as progress:
        made = verbs.train(
            output,
            arch=arch,
            data=data,
            held_out=held_out,
            image_size=image_size,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            init=init,
            skip_bad_images=skip_bad_images,
            workers=workers,
            cache=opt.cache_of(no_cache),  # type: ignore[arg-type]
            progress=progress,
        )
    top1 = made.manifest.details.get("top1")
    say(made, as_json, f"top-1 {top1:.2%} on held-out images" if top1 is not None else None)


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, resnet50:IMAGENET1K_V2, timm:resnet50.a1_in1k or resnet50:random."
        ),
    ],
    output: opt.Output,
    arch: opt.Arch = None,
    batch: Annotated[str, typer.Option(help="dynamic, or a fixed number of images.")] = "dynamic",
    image_size: opt.ImageSize = None,
    input_kind: Annotated[
        str, typer.Option("--input", help="float32-nchw, or uint8-nhwc (pixels).")
    ] = "float32-nchw",
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Export a model to ONNX, checked against PyTorch.

    Example: resnet-opt export resnet50:IMAGENET1K_V2 -o model.onnx
    """
    from optimizer import verbs

    with bars() as progress:
        made = verbs.export(
            model,
            output,
            arch=arch,
            batch=opt.batch_size(batch),
            image_size=image_size,
            input_kind=input_kind,
            opset=opset,
            cache=opt.cache_of(no_cache),  # type: ignore[arg-type]
            progress=progress,
        )
    details = made.manifest.details
    worst = details["max_relative_difference"]
    said = f"differs from PyTorch by at most {worst:.1e} of the largest logit"
    if details.get("preprocessing_assumed"):
        size = (made.manifest.preprocessing or {}).get("crop")
        said += (
            f"\npreprocessing assumed, for the weights came without: ImageNet's mean and std, {size} px; "
            "wrong ones cost accuracy"
            + (f"; others are said in {model}.card.json" if _is_bare(Path(model)) else "")
        )
    say(made, as_json, said)


def _is_bare(weights: Path) -> bool:
    """Whether weights are a file that a card may lie beside."""
    from optimizer.artifacts import find_manifest

    return weights.is_file() and find_manifest(weights) is None


def calibrate(
    graph: Annotated[Path, typer.Argument(help="An FP32 ONNX file, or a Q/DQ one.")],
    output: opt.Output,
    calib: Annotated[str, typer.Option(help="digits:train, a folder, or file.npz.")],
    calib_images: opt.CalibImages = 256,
    seed: Annotated[int, typer.Option(help="Decides the subset.")] = 0,
    halves: Annotated[
        bool, typer.Option("--halves", help="Also tell how far scales move between two halves.")
    ] = False,
    preprocessing_from: opt.PreprocessingFrom = None,
    skip_bad_images: opt.SkipBadImages = False,
    workers: opt.Workers = None,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Take calibration statistics: one pass that serves every target and method.

    Example: resnet-opt calibrate model.onnx --calib digits:train -o model.stats.npz

    Example: resnet-opt calibrate model.onnx --calib data/train --halves -o model.stats.npz

    Of a graph that is INT8 already, the float graph that it stands for is calibrated.
    """
    from optimizer import verbs

    with bars() as progress:
        made = verbs.calibrate(
            graph,
            output,
            calib=calib,
            calib_images=calib_images,
            seed=seed,
            preprocessing_from=preprocessing_from,
            skip_bad_images=skip_bad_images,
            workers=workers,
            cache=opt.cache_of(no_cache),  # type: ignore[arg-type]
            progress=progress,
        )
        moved = (
            verbs.compare_halves(
                graph,
                calib=calib,
                calib_images=calib_images,
                seed=seed,
                preprocessing_from=preprocessing_from,
                skip_bad_images=skip_bad_images,
                workers=workers,
                progress=progress,
            )
            if halves
            else []
        )
    details = {"halves": [asdict(one) for one in moved]} if moved else {}
    tensors, notes = (made.manifest.details[name] for name in ("tensors", "notes"))
    say(made, as_json, f"{tensors} tensors", *notes, *_halves(moved), details=details)


def _halves(moved: list[Moved]) -> list[str]:
    if not moved:
        return []
    middle = median(one.mse for one in moved)
    return [
        f"between two halves of the images, scales move by {middle:.1%} (median), most of all",
        *(
            f"  {one.tensor}: {one.mse:.1%} by squared error, {one.minmax:.1%} by min-max"
            for one in moved[:5]
        ),
    ]


def quantize(
    graph: Annotated[Path, typer.Argument(help="An FP32 ONNX file, or a Q/DQ one.")],
    output: opt.Output,
    precision: Annotated[str, typer.Option(help="fp16, bf16, int8, fp8 or mixed.")] = "int8",
    target: Annotated[
        str, typer.Option(help="Whose rules: openvino, onnxruntime, tensorrt, tensorrt-rtx.")
    ] = "openvino",
    calib: opt.Calib = None,
    calib_images: opt.CalibImages = 256,
    stats: opt.Stats = None,
    encodings: opt.EncodingsFile = None,
    keep: opt.Keep = None,
    data: opt.Judge = None,
    max_drop: opt.MaxDrop = "1pp",
    method: opt.Method = "auto",
    equalize: opt.Equalize = True,
    bias_correction: opt.Bias = "network",
    shift: opt.Shift = True,
    high_precision: opt.HighPrecision = None,
    preprocessing_from: opt.PreprocessingFrom = None,
    skip_bad_images: opt.SkipBadImages = False,
    workers: opt.Workers = None,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Write the explicit graph of another precision, without compiling it.

    Example: resnet-opt quantize model.onnx --target tensorrt --calib digits:train -o int8.onnx

    Example: resnet-opt quantize model.onnx --calib digits:train --keep conv1,fc -o int8.onnx

    A graph that carries Q/DQ already (ModelOpt, ONNX Runtime, NNCF, QAT) is
    lowered again for the target with its own integers and ranges; --calib
    measures what it leaves in float. --precision fp32 gives its float graph.

    Example: resnet-opt quantize int8.onnx --preprocessing-from model.onnx -o q.onnx
    """
    from optimizer import verbs
    from optimizer.units import parse_pp

    with bars() as progress:
        made = verbs.quantize(
            graph,
            output,
            precision=precision,
            target=target,
            calib=calib,
            calib_images=calib_images,
            stats=stats,
            encodings=encodings,
            data=data,
            max_drop_pp=parse_pp(max_drop),
            options=opt.encoding_options(
                method, keep, equalize=equalize, bias=bias_correction, shift=shift
            ),
            high_precision=high_precision,
            preprocessing_from=preprocessing_from,
            skip_bad_images=skip_bad_images,
            workers=workers,
            cache=opt.cache_of(no_cache),  # type: ignore[arg-type]
            progress=progress,
        )
    pairs, notes = (made.manifest.details.get(name) for name in ("pairs", "notes"))
    found = search_result(graph, output, precision)
    remark = f"{pairs} tensors with Q/DQ" if pairs else None
    say(made, as_json, remark, *(notes or ()), *searched(found), details=as_detail(found))
    raise_for(found)
