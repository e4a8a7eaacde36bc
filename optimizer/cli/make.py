"""Commands that make artifacts: train, export, calibrate, quantize, build."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import options as opt

if TYPE_CHECKING:
    from optimizer.artifacts import Artifact
    from optimizer.precision.int8.halves import Moved
    from optimizer.results import SearchResult

__all__ = ["build", "calibrate", "export", "quantize", "train"]


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

    with _bars() as progress:
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
    _say(made, as_json, f"top-1 {top1:.2%} on held-out images" if top1 is not None else None)


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

    with _bars() as progress:
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
    worst = made.manifest.details["max_relative_difference"]
    _say(made, as_json, f"differs from PyTorch by at most {worst:.1e} of the largest logit")


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

    with _bars() as progress:
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
    _say(made, as_json, f"{tensors} tensors", *notes, *_halves(moved), details=details)


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

    with _bars() as progress:
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
    found = _search_result(graph, output, precision)
    remark = f"{pairs} tensors with Q/DQ" if pairs else None
    _say(made, as_json, remark, *(notes or ()), *_searched(found), details=_as_detail(found))
    _raise_for(found)


def build(
    graph: Annotated[Path, typer.Argument(help="An ONNX file (a checkpoint for --engine torch).")],
    output: opt.Output,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8, fp8 or mixed.")] = "fp32",
    fp16: Annotated[bool, typer.Option("--fp16", help="The same as --precision fp16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="The same as --precision int8.")] = False,
    engine: Annotated[
        str, typer.Option(help="auto, openvino, onnxruntime, tensorrt, tensorrt-rtx or torch.")
    ] = "auto",
    target: Annotated[
        str | None, typer.Option(help="GPUs to compile for without one here: sm86,sm89,sm120.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="min:opt:max batch, 1:8:32.")] = None,
    workspace: Annotated[str | None, typer.Option(help="TensorRT's scratch memory, 4GiB.")] = None,
    opt_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="TensorRT's optimization level.")
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="TensorRT's timing cache.")] = None,
    threads: opt.Threads = None,
    storage_only: Annotated[
        bool, typer.Option(help="On a CPU: store half types, compute in FP32, labelled so.")
    ] = False,
    min_share: Annotated[
        str, typer.Option(help="Share of the FLOPs that must be in the asked precision.")
    ] = "95%",
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
    skip_bad_images: opt.SkipBadImages = False,
    workers: opt.Workers = None,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Compile an engine and audit that it computes what was asked.

    Example: resnet-opt build model.onnx --precision int8 --calib digits:train -o model.blob

    Example: resnet-opt build model.onnx --fp16 --engine tensorrt-rtx --target sm89 -o model.rtx

    Example: resnet-opt build model.onnx --precision fp8 --target sm89 --calib data/train -o model.rtx

    Example: resnet-opt build model.onnx --precision mixed --calib digits:train --data digits:test -o m.blob
    """
    from optimizer import verbs
    from optimizer.errors import PrecisionAuditFailed, UsageError
    from optimizer.units import parse_bytes, parse_pp, parse_profile, parse_share

    if fp16 and int8:
        raise UsageError("--fp16 and --int8 together", mend="build one engine for each")
    if fp16 or int8:
        precision = "fp16" if fp16 else "int8"
    share = parse_share(min_share)
    with _bars() as progress:
        made = verbs.build(
            graph,
            output,
            precision=precision,
            engine=engine,
            target=opt.words(target),
            profile=parse_profile(profile) if profile else None,
            workspace_bytes=parse_bytes(workspace) if workspace else None,
            opt_level=opt_level,
            timing_cache=timing_cache,
            threads=threads,
            storage_only=storage_only,
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
            skip_bad_images=skip_bad_images,
            workers=workers,
            cache=opt.cache_of(no_cache),  # type: ignore[arg-type]
            progress=progress,
        )
    audit = verbs.audit_engine(made, min_share=share)
    notes = [audit.reason, *made.manifest.details.get("notes", [])]
    found = _search_result(graph, output, precision)
    details = {"audit": audit.model_dump(mode="json"), **_as_detail(found)}
    _say(made, as_json, *notes, *_searched(found), details=details)
    _raise_for(found)
    if audit.verdict == "fail":
        raise PrecisionAuditFailed(
            f"{made.path.name}: {audit.reason}", mend="resnet-opt inspect names every layer"
        )


# --- mixed precision ---------------------------------------------------------------------------


def _search_result(graph: Path, output: Path, precision: str) -> SearchResult | None:
    """What the search left beside the output; a graph that is mixed already needed none."""
    from optimizer.results import SearchResult, read_result
    from optimizer.search import search_path

    path = search_path(output)
    if precision != "mixed" or not path.is_file():
        return None
    result = read_result(path)
    assert isinstance(result, SearchResult)
    return result if result.graph == graph.name else None


def _as_detail(found: SearchResult | None) -> dict[str, Any]:
    return {} if found is None else {"search": found.model_dump(mode="json")}


def _searched(found: SearchResult | None) -> list[str]:
    if found is None:
        return []
    judged = [found.validation.finding] if found.validation is not None else []
    return [found.finding, *judged]


def _raise_for(found: SearchResult | None) -> None:
    from optimizer.evaluation import raise_for_verdict

    if found is not None and found.validation is not None:
        raise_for_verdict(found.validation)


# --- printing ----------------------------------------------------------------------------------


def _bars() -> Any:
    from optimizer.cli.console import progress

    return progress()


def _say(
    made: Artifact,
    as_json: bool,
    *remarks: str | None,
    details: dict[str, Any] | None = None,
) -> None:
    if as_json:
        raw = made.manifest.model_dump(mode="json")
        raw["details"] |= details or {}
        typer.echo(json.dumps({**raw, "path": str(made.path), "cached": made.cached}, indent=2))
        return
    size = made.path.stat().st_size
    unit, divisor = ("MB", 1e6) if size >= 1e5 else ("kB", 1e3)
    cached = ", nothing to do: it was made before" if made.cached else ""
    typer.echo(f"{made.path}  {size / divisor:.1f} {unit}{cached}")
    for remark in remarks:
        if remark:
            typer.echo(f"  {remark}")
