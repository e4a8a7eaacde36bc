"""The command that compiles: build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli import options as opt
from optimizer.cli.made import as_detail, bars, raise_for, say, search_result, searched

__all__ = ["build"]


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
    with bars() as progress:
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
            cache=opt.cache_of(no_cache),  # type: ignore[arg-type]
            progress=progress,
        )
    audit = verbs.audit_engine(made, min_share=share)
    notes = [audit.reason, *made.manifest.details.get("notes", [])]
    found = search_result(graph, output, precision)
    details = {"audit": audit.model_dump(mode="json"), **as_detail(found)}
    say(made, as_json, *notes, *searched(found), details=details)
    raise_for(found)
    if audit.verdict == "fail":
        raise PrecisionAuditFailed(
            f"{made.path.name}: {audit.reason}", mend="resnet-opt inspect names every layer"
        )
