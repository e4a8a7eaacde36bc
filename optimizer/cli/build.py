"""The commands that make engines: build and refit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optimizer.cli import options as opt
from optimizer.cli.made import as_detail, bars, raise_for, say, search_result, searched

__all__ = ["build", "refit"]

_TENSORRT, _LIMITS = "TensorRT and TensorRT-RTX", "Limits of the build"


def _tensorrt(help_: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=_TENSORRT, **more)


Target = Annotated[
    str | None, _tensorrt("RTX: GPUs to compile for without one here: sm86,sm89,sm120.")
]
Profile = Annotated[
    list[str] | None, _tensorrt("min:opt:max batch, 1:8:32; give it again for a further profile.")
]
Workspace = Annotated[str | None, _tensorrt("Largest scratch memory of a layer, 4GiB.")]
OptLevel = Annotated[int | None, _tensorrt("Optimization level (RTX: ignored).", min=0, max=5)]
TimingCache = Annotated[
    Path | None, _tensorrt("File or folder of measured kernels (RTX: ignored).")
]
Tf32 = Annotated[bool, _tensorrt("Let FP32 layers compute in TF32 (RTX: ignored).", "--tf32")]
Sparsity = Annotated[
    bool, _tensorrt("Use 2:4 sparse kernels where weights allow (RTX: ignored).", "--sparsity")
]
HardwareCompatibility = Annotated[
    str | None,
    _tensorrt("Also for other GPUs: ampere-plus, same-compute-capability (RTX: use --target)."),
]
VersionCompatible = Annotated[
    bool, _tensorrt("Runs with later versions of TensorRT too (not RTX).", "--version-compatible")
]
StripWeights = Annotated[
    bool, _tensorrt("Leave the weights out; refit puts them in (needs a GPU).", "--strip-weights")
]
Refittable = Annotated[
    bool, _tensorrt("Weights can be replaced by refit (needs a GPU).", "--refittable")
]
CudaGraph = Annotated[bool, _tensorrt("Run the engine as a CUDA graph.", "--cuda-graph")]
Specialization = Annotated[
    str | None, _tensorrt("RTX: kernels for the shapes that run: eager, lazy or none.")
]
RuntimeCache = Annotated[
    str | None, _tensorrt("RTX: file beside the engine that keeps kernels compiled at run time.")
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(help="Memory a build may take, 8GiB.", rich_help_panel=_LIMITS),
]
BuildTimeout = Annotated[str, typer.Option(help="Time a build may take.", rich_help_panel=_LIMITS)]


def _fixed_batch(text: str | None) -> tuple[int, ...] | None:
    """The sizes; no size where there shall be none, ``None`` where nothing was said."""
    if text is None or text == "none":
        return None if text is None else ()
    return tuple(opt.numbers(text, "the fixed batches"))


def build(
    graph: Annotated[Path, typer.Argument(help="An ONNX file (a checkpoint for --engine torch).")],
    output: opt.Output,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8, fp8 or mixed.")] = "fp32",
    fp16: Annotated[bool, typer.Option("--fp16", help="The same as --precision fp16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="The same as --precision int8.")] = False,
    engine: Annotated[
        str, typer.Option(help="auto, openvino, onnxruntime, tensorrt, tensorrt-rtx or torch.")
    ] = "auto",
    provider: opt.Provider = None,
    provider_option: opt.ProviderOptions = None,
    target: Target = None,
    profile: Profile = None,
    workspace: Workspace = None,
    opt_level: OptLevel = None,
    timing_cache: TimingCache = None,
    tf32: Tf32 = False,
    sparsity: Sparsity = False,
    hardware_compatibility: HardwareCompatibility = None,
    version_compatible: VersionCompatible = False,
    strip_weights: StripWeights = False,
    refittable: Refittable = False,
    cuda_graph: CudaGraph = False,
    specialization: Specialization = None,
    runtime_cache: RuntimeCache = None,
    memory_limit: MemoryLimit = None,
    build_timeout: BuildTimeout = "30min",
    threads: opt.Threads = None,
    fixed_batch: Annotated[
        str | None,
        typer.Option(
            help="OpenVINO: batch sizes compiled for themselves too, which is faster: 1,8, or none; "
            "default: 1."
        ),
    ] = None,
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
    preprocessing_from: opt.PreprocessingFrom = None,
    skip_bad_images: opt.SkipBadImages = False,
    workers: opt.Workers = None,
    no_cache: opt.CacheOff = False,
    as_json: opt.Json = False,
) -> None:
    """Compile an engine and audit that it computes what was asked.

    Example: resnet-opt build model.onnx --precision int8 --calib digits:train -o model.blob

    Example: resnet-opt build model.onnx --fp16 --engine tensorrt-rtx --target sm89 -o model.rtx

    Example: resnet-opt build model.onnx --fp16 --engine onnxruntime --provider cuda -o model.ort.onnx

    Example: resnet-opt build model.onnx --precision fp8 --target sm89 --calib data/train -o model.rtx

    Example: resnet-opt build int8.onnx --int8 --engine tensorrt --profile 1:1:1 --profile 8:32:64 -o m.plan

    Example: resnet-opt build model.onnx --precision mixed --calib digits:train --data digits:test -o m.blob
    """
    from optimizer import verbs
    from optimizer.engines import get_backend
    from optimizer.engines.building import Limits
    from optimizer.errors import PrecisionAuditFailed, UsageError
    from optimizer.units import parse_bytes, parse_duration, parse_pp, parse_profile, parse_share

    if fp16 and int8:
        raise UsageError("--fp16 and --int8 together", mend="build one engine for each")
    if fp16 or int8:
        precision = "fp16" if fp16 else "int8"
    share = parse_share(min_share)
    profiles = [parse_profile(text) for text in profile or ()]
    limits = Limits(
        seconds=parse_duration(build_timeout),
        memory_bytes=parse_bytes(memory_limit) if memory_limit else None,
    )
    with bars() as progress:
        made = verbs.build(
            graph,
            output,
            precision=precision,
            engine=engine,
            provider=provider,
            provider_options=opt.pairs(provider_option, "--provider-option"),
            target=opt.words(target),
            profile=profiles[0] if profiles else None,
            workspace_bytes=parse_bytes(workspace) if workspace else None,
            opt_level=opt_level,
            timing_cache=timing_cache,
            threads=threads,
            storage_only=storage_only,
            backend_options=opt.given(
                profiles=profiles[1:],
                tf32=tf32,
                sparsity=sparsity,
                hardware_compatibility=hardware_compatibility,
                version_compatible=version_compatible,
                strip_weights=strip_weights,
                refittable=refittable,
                cuda_graph=cuda_graph,
                specialization=specialization,
                runtime_cache=runtime_cache,
                fixed_batch=_fixed_batch(fixed_batch),
            ),
            limits=limits,
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
    audit = verbs.audit_engine(made, min_share=share)
    backend = str(made.manifest.settings["backend"])  # not asked for by name with --engine auto
    here = get_backend(backend).availability()
    notes = [f"{backend}: {audit.reason}", *made.manifest.details.get("notes", [])]
    if not here.can_run:
        notes.append(f"it cannot run here: {here.reason}")
    found = search_result(graph, output, precision)
    details = {"audit": audit.model_dump(mode="json"), **as_detail(found)}
    say(made, as_json, *notes, *searched(found), details=details)
    raise_for(found)
    if audit.verdict == "fail":
        raise PrecisionAuditFailed(
            f"{made.path.name}: {audit.reason}", mend="resnet-opt inspect names every layer"
        )


def refit(
    engine: Annotated[
        Path, typer.Argument(help="An engine built with --refittable or --strip-weights.")
    ],
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint or a model's name, or an ONNX file of the same network."),
    ],
    output: opt.Output,
    arch: opt.Arch = None,
    device: Annotated[str | None, typer.Option(help="Which GPU does it, cuda:1.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Put other weights of the same network into a TensorRT engine, without building it again.

    Example: resnet-opt refit model.plan tuesday.safetensors -o tuesday.plan

    The graph that the engine was built from must lie beside it. An engine in
    INT8 or FP8 takes an ONNX file with the same scales, and no checkpoint: its
    scales belong to the weights it was calibrated with. Needs a GPU.
    """
    from optimizer import verbs

    with bars() as progress:
        made = verbs.refit(engine, model, output, arch=arch, device=device, progress=progress)
    say(made, as_json, f"{engine.name} with the weights of {model}")
