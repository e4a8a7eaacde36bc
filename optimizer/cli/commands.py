"""The commands: each parses, calls one verb, and prints the result.

Options are not written here: a parameter ``options`` stands for the flags of its model
(`optimizer.cli.flags.with_flags`).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from optimizer.cli.console import say
from optimizer.cli.flags import STDOUT, Force, Json, NoCache, Output, PrecisionFlags, argument
from optimizer.options import (
    BenchOptions,
    BuildOptions,
    CalibrateOptions,
    CompareOptions,
    ExportOptions,
    InspectOptions,
    LatencyTableOptions,
    PredictOptions,
    PreprocessOptions,
    ProfileOptions,
    PruneOptions,
    QuantizeOptions,
    RefitOptions,
    ReportOptions,
    TrainOptions,
    ValidateOptions,
)
from optimizer.recipe import DemoOptions, RunOptions

__all__ = ["PANELS", "set_lock_timeout"]

Graph = Annotated[Path, argument("An ONNX file, in FP32 or with Q/DQ.", "GRAPH")]
Engines = Annotated[
    list[Path], argument("Engines or checkpoints; bench also takes ONNX graphs.", "ENGINE")
]
Folder = Annotated[
    Path | None,
    Parameter(name=("--output", "-o"), help="Run folder; default: runs/NAME.", metavar="FOLDER"),
]
SaveRecipe = Annotated[
    Path | None,
    Parameter(
        name="--save-recipe",
        help="Write the recipe to this file and exit, for resnet-opt run FILE.",
        metavar="FILE",
    ),
]
Layers = Annotated[bool, Parameter(name="--layers", negative="", help="Print every layer.")]


def _result_file(name: str) -> Any:
    return Parameter(
        name=("--output", "-o"),
        help=f"Output file; - for standard output. [default: {name}]",
        metavar="FILE",
    )


# --- the main job --------------------------------------------------------------------------------


def demo(
    *,
    options: DemoOptions,  # type: ignore[valid-type]
    output: Folder = None,
    save_recipe: SaveRecipe = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run the main job on bundled real data; nothing is downloaded.

    It trains a network on 1,257 images of handwritten digits, builds engines for OpenVINO, ONNX
    Runtime and TensorRT-RTX in the precisions that each computes (FP32, FP16, BF16, INT8),
    validates them on 540 other images, benchmarks them, and writes the report. With --task detection
    it trains a detector to find digits on photographs instead, for the same engines.

    Example: resnet-opt demo

    Example: resnet-opt demo --task detection
    """
    from optimizer.verbs import run as job

    if save_recipe is not None:
        _save_recipe(job.demo_recipe(options), save_recipe, None, force=force)
        return
    folder = output or job.demo_folder(options)
    with _bars() as progress:
        result = job.demo(
            folder,
            options=options,
            command=_command(),
            cache=_cache(no_cache),
            force=force,
            progress=progress,
        )
    _finish_run(result, folder, as_json)


def run(
    source: Annotated[
        str, argument("A recipe (.yaml), or a model as for resnet-opt export.", "SOURCE")
    ],
    /,
    *,
    options: RunOptions,  # type: ignore[valid-type]
    output: Folder = None,
    save_recipe: SaveRecipe = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Take a model from checkpoint to engines and report, in one folder.

    Example: resnet-opt run resnet50:IMAGENET1K_V2 --data /data/imagenet/val

    Example: resnet-opt run recipe.yaml -o runs/tuesday
    """
    from optimizer.verbs import run as job

    if save_recipe is not None:
        _save_recipe(job.run_recipe(source, options), save_recipe, source, force=force)
        return
    folder = output or job.default_folder(source)
    with _bars() as progress:
        result = job.run(
            source,
            folder,
            options=options,
            command=_command(),
            cache=_cache(no_cache),
            force=force,
            progress=progress,
        )
    _finish_run(result, folder, as_json)


# --- its steps -----------------------------------------------------------------------------------


def train(
    *,
    output: Output,
    options: TrainOptions,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a ResNet, or a detector on one, into a checkpoint; with --qat an INT8 network.

    Example: resnet-opt train --arch resnet50 --data digits:train -o model.safetensors

    Example: resnet-opt train --init resnet50:DEFAULT --data train/ --val val/ -o model.safetensors

    Example: torchrun --nproc-per-node 8 --no-python resnet-opt train --recipe tv-v2 --arch resnet50
    --data train/ --val val/ -o model.safetensors

    Example: resnet-opt train --arch retinanet_resnet18_fpn --data digits-scenes:train -o det.safetensors

    Example: resnet-opt train --qat int8 --target tensorrt --init model.safetensors --data train/
    --val val/ -o model.int8.onnx
    """
    from optimizer.verbs.train import train as verb

    with _bars() as progress:
        artifact = verb(output, options, cache=_cache(no_cache), force=force, progress=progress)
    if not artifact.first_process:
        return
    accuracy = None
    if artifact.top1 is not None:
        accuracy = f"top-1 {artifact.top1:.2%} on held-out images"
    if artifact.ap is not None and artifact.ap50 is not None:
        accuracy = f"AP {artifact.ap:.3f}, AP50 {artifact.ap50:.3f} on held-out images"
    notes = [f"note: {note}" for note in artifact.notes]
    chosen = artifact.quantized
    details = {} if chosen is None else {"qat": chosen.model_dump(mode="json")}
    lines = [accuracy, None if chosen is None else chosen.reason, *notes]
    _print_artifact(artifact, as_json, *lines, details=details)


def prune(
    model: Annotated[str, argument("A checkpoint, or a model as for resnet-opt export.", "MODEL")],
    /,
    *,
    output: Output,
    options: PruneOptions,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut channels and blocks until an engine is fast enough, and tune what remains.

    Layers are timed at several widths in the engine; the widths that keep the most saliency within the
    latency are chosen; the narrow network learns from the whole one, and is judged against it.

    Example: resnet-opt prune model.safetensors --data train/ --val val/ --engine openvino
    --precision int8 --speedup 1.5 --max-drop 0.5pp -o pruned.safetensors
    """
    from optimizer.cli.printing import print_pruning
    from optimizer.evaluation import raise_for_verdict
    from optimizer.verbs.prune import prune as verb

    with _bars() as progress:
        result = verb(
            model, output, options, cache=_cache(no_cache), force=force, progress=progress
        )
    print_pruning(result, output, as_json)
    assert result.validation is not None
    raise_for_verdict(result.validation)


def latency_table(
    *,
    model: Annotated[
        str, Parameter(name="--model", help="A checkpoint, or a model name.", metavar="MODEL")
    ],
    output: Output,
    options: LatencyTableOptions,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Time the layers of a network at several widths in an engine, for prune --table.

    Example: resnet-opt latency-table --model resnet50:random:10 --engine openvino --precision int8
    --batch 1,8 -o table.json
    """
    from optimizer.cli.printing import print_table
    from optimizer.verbs.latency_table import latency_table as verb

    with _bars() as progress:
        result = verb(
            model, output, options, cache=_cache(no_cache), force=force, progress=progress
        )
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    print_table(result.as_table())
    say(f"{result.reason}; details in {output}")


def export(
    model: Annotated[
        str,
        argument(
            "A checkpoint, a Keras model, resnet50:IMAGENET1K_V2, timm:resnet50.a1_in1k, resnet50:random "
            "or a SavedModel's folder; with --with-nms also an exported detector.",
            "MODEL",
        ),
    ],
    /,
    *,
    output: Output,
    options: ExportOptions,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, checked against PyTorch (a SavedModel: against TensorFlow).

    Example: resnet-opt export resnet50:IMAGENET1K_V2 -o model.onnx

    Example: resnet-opt export detector.safetensors --with-nms -o boxes.onnx
    """
    from optimizer.cli.printing import export_lines
    from optimizer.verbs.export import export as verb

    with _bars() as progress:
        artifact = verb(
            model, output, options, cache=_cache(no_cache), force=force, progress=progress
        )
    _print_artifact(artifact, as_json, *export_lines(artifact, model))


def calibrate(
    graph: Graph,
    /,
    *,
    output: Output,
    options: CalibrateOptions,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Collect calibration statistics in one pass, for every target and method.

    If the graph already has Q/DQ, its float graph is calibrated.

    Example: resnet-opt calibrate model.onnx --calib digits:train -o model.stats.npz

    Example: resnet-opt calibrate model.onnx --calib data/train --halves -o model.stats.npz
    """
    from optimizer.cli.printing import halves_lines
    from optimizer.processes.ranks import is_first_process
    from optimizer.verbs.calibrate import calibrate as verb

    with _bars() as progress:
        artifact = verb(
            graph, output, options, cache=_cache(no_cache), force=force, progress=progress
        )
    if not is_first_process():  # torchrun: every process has the same result
        return
    details = {"halves": [asdict(moved) for moved in artifact.halves]} if artifact.halves else {}
    tensors, notes = (artifact.manifest.details[name] for name in ("tensors", "notes"))
    lines = [f"{tensors} tensors", *notes, *halves_lines(artifact.halves)]
    _print_artifact(artifact, as_json, *lines, details=details)


def quantize(
    graph: Graph,
    /,
    *,
    output: Output,
    options: QuantizeOptions,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a graph to another precision without compiling it.

    A graph that already has Q/DQ (from ModelOpt, ONNX Runtime, NNCF or QAT) is lowered again for
    the target with its own integers and ranges; --calib calibrates the tensors that it leaves in
    float. --precision fp32 writes its float graph.

    Example: resnet-opt quantize model.onnx --target tensorrt --calib digits:train -o int8.onnx

    Example: resnet-opt quantize model.onnx --calib digits:train --keep conv1,fc -o int8.onnx

    Example: resnet-opt quantize int8.onnx --preprocessing-from model.onnx -o q.onnx
    """
    from optimizer.cli.printing import search_lines
    from optimizer.verbs.quantize import quantize as verb

    with _bars() as progress:
        artifact = verb(
            graph, output, options, cache=_cache(no_cache), force=force, progress=progress
        )
    pairs, notes = (artifact.manifest.details.get(name) for name in ("pairs", "notes"))
    lines = [f"{pairs} tensors with Q/DQ" if pairs else None, *(notes or ())]
    lines += search_lines(artifact.search)
    _print_artifact(artifact, as_json, *lines, details=_search_details(artifact.search))
    _raise_for_search(artifact.search)


def build(
    graph: Annotated[
        Path,
        argument("An ONNX file; or a checkpoint or model name, which is exported first.", "GRAPH"),
    ],
    /,
    *,
    output: Output,
    options: BuildOptions,
    flags: PrecisionFlags | None = None,
    save_intermediates: Annotated[
        Path | None,
        Parameter(
            help="Folder for the files on the way to the engine: FP32 graph, statistics, encodings; "
            "default: only in the cache.",
            metavar="DIR",
        ),
    ] = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compile an engine and check that it computes in the requested precision.

    To use the engine on another machine, copy OUTPUT and OUTPUT.json. To validate or profile it
    there, copy OUTPUT.graph.onnx and OUTPUT.graph.onnx.json too.

    Example: resnet-opt build model.onnx --precision int8 --calib digits:train -o model.blob

    Example: resnet-opt build model.safetensors --int8 --calib digits:train -o model.blob

    Example: resnet-opt build model.onnx --fp16 --engine tensorrt-rtx --target sm89 -o model.rtx

    Example: resnet-opt build model.onnx --fp16 --engine onnxruntime --provider cuda -o model.ort.onnx

    Example: resnet-opt build model.onnx --precision fp8 --target sm89 --calib data/train -o model.rtx

    Example: resnet-opt build int8.onnx --int8 --engine tensorrt --profile 1:1:1 --profile 8:32:64 -o m.plan

    Example: resnet-opt build model.onnx --precision mixed --calib digits:train --data digits:test -o m.blob
    """
    from optimizer.cli.printing import search_lines
    from optimizer.engines.registry import get_backend
    from optimizer.errors import PrecisionAuditFailed
    from optimizer.verbs.build import build as verb

    if flags is not None and (precision := flags.precision) is not None:
        options = options.model_copy(update={"precision": precision})
    with _bars() as progress:
        artifact = verb(
            graph,
            output,
            options,
            save_intermediates=save_intermediates,
            cache=_cache(no_cache),
            force=force,
            progress=progress,
        )
    backend = str(artifact.manifest.settings["backend"])  # --engine auto is decided by the build
    availability = get_backend(backend).availability()
    lines = [f"{backend}: {artifact.audit.reason}", *artifact.remarks]
    lines += artifact.manifest.details.get("notes", [])
    if not availability.can_run:
        lines.append(f"cannot run on this machine: {availability.reason}")
    lines += search_lines(artifact.search)
    if save_intermediates is not None:
        names = ", ".join(path.name for path in artifact.intermediates)
        lines.append(f"{save_intermediates}: {names or 'nothing was needed on the way'}")
    details = {"audit": artifact.audit.model_dump(mode="json"), **_search_details(artifact.search)}
    _print_artifact(artifact, as_json, *lines, details=details)
    _raise_for_search(artifact.search)
    if artifact.audit.verdict == "fail":
        raise PrecisionAuditFailed(
            f"{artifact.path.name}: {artifact.audit.reason}",
            hint="resnet-opt inspect lists every layer",
        )


def refit(
    engine: Annotated[
        Path, argument("An engine built with --refittable or --strip-weights.", "ENGINE")
    ],
    model: Annotated[
        str,
        argument("A checkpoint, a model name, or an ONNX file of the same network.", "MODEL"),
    ],
    /,
    *,
    output: Output,
    options: RefitOptions,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Replace the weights of a TensorRT engine without rebuilding it.

    The graph that the engine was built from must be in the same folder. An INT8 or FP8 engine
    takes an ONNX file with the same scales, not a checkpoint, because its scales belong to the
    weights it was calibrated with. Needs a GPU.

    Example: resnet-opt refit model.plan tuesday.safetensors -o tuesday.plan
    """
    from optimizer.verbs.refit import refit as verb

    with _bars() as progress:
        artifact = verb(engine, model, output, options, force=force, progress=progress)
    _print_artifact(artifact, as_json, f"{engine.name} with the weights of {model}")


def validate(
    engines: Annotated[list[Path], argument("Engines, graphs or checkpoints.", "ENGINE")],
    /,
    *,
    options: ValidateOptions,
    output: Annotated[Path, _result_file("validate.json")] = Path("validate.json"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Validate accuracy hop by hop: PyTorch, ONNX, the converted graph, the engine.

    Example: resnet-opt validate model.blob --reference model.safetensors --data digits:test
    """
    from optimizer.cli.printing import print_validation
    from optimizer.evaluation import raise_for_verdict
    from optimizer.processes.ranks import is_first_process
    from optimizer.verbs.validate import validate as verb

    with _bars() as progress:
        result = verb(engines, options, output=_file(output), force=force, progress=progress)
    if not is_first_process():  # torchrun: every process has the same result
        return
    if not _printed_to_stdout(result, output):
        print_validation(result, output, as_json)
    raise_for_verdict(result)


def bench(
    engines: Engines,
    /,
    *,
    options: BenchOptions,
    output: Annotated[Path, _result_file("bench.json")] = Path("bench.json"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure latency and throughput, with confidence intervals.

    Each engine runs in its own process; rounds are interleaved in random order. Several values of
    --batch, --threads or --streams measure every combination and report the knee of each curve;
    engines are compared at the first --threads and --streams. LoadGen's server scenario searches
    for the highest rate whose p99 latency is within --max-latency (default there: 15ms).

    Example: resnet-opt bench model.blob --against model.safetensors --batch 1,8 --duration 10s

    Example: resnet-opt bench model.blob --batch 1,2,4,8,16,32 --streams 1,2 --max-latency 15ms
    """
    from optimizer.cli.printing import print_bench
    from optimizer.errors import BuildError, Inconclusive, PerformanceRegression
    from optimizer.verbs.bench import bench as verb

    with _bars() as progress:
        result = verb(engines, options, output=_file(output), force=force, progress=progress)
    if not _printed_to_stdout(result, output):
        print_bench(result, output, as_json)
    if result.verdict == "fail":
        # A crash (of an engine, a setting, a scenario or the control) is not a regression.
        raise (BuildError if result.failed else PerformanceRegression)(result.reason)
    if result.verdict == "inconclusive":
        raise Inconclusive(result.reason)


def profile(
    engines: Engines,
    /,
    *,
    options: ProfileOptions,
    output: Annotated[Path, _result_file("profile.json")] = Path("profile.json"),
    layers: Layers = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Profile engines by layer and residual block, compared with the machine's roofline.

    Example: resnet-opt profile model.blob model.safetensors --batch 1 -o profile.json
    """
    from optimizer.cli.printing import print_profile
    from optimizer.errors import BuildError
    from optimizer.verbs.profile import profile as verb

    with _bars() as progress:
        result = verb(engines, options, output=_file(output), force=force, progress=progress)
    if _printed_to_stdout(result, output):
        pass
    elif as_json:
        print(result.model_dump_json(indent=2))
    else:
        print_profile(result, every_layer=layers)
        print(f"details in {output}")
    failed = [engine for engine in result.engines if engine.status == "failed"]
    if failed:
        raise BuildError("; ".join(f"{engine.name}: {engine.error}" for engine in failed))


# --- results -------------------------------------------------------------------------------------


def predict(
    engine: Annotated[Path, argument("An engine, a checkpoint or an ONNX graph.", "ENGINE")],
    images: Annotated[list[Path], argument("Image files, or folders of them.", "IMAGE")],
    /,
    *,
    options: PredictOptions,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Classify images and print the most probable classes; for a detector, its detections.

    Example: resnet-opt predict model.blob cat.jpg dog.png

    Example: resnet-opt predict detector.blob photos/ --score-threshold 0.5 --annotate found/
    """
    from optimizer.cli.printing import prediction_lines
    from optimizer.verbs.predict import predict as verb

    with _bars() as progress:
        rows = verb(engine, images, options, force=force, progress=progress)
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in rows], indent=2))
        return
    for row in rows:
        say(row.image)
        for line in prediction_lines(row):
            say(f"  {line}")


def inspect(
    artifact: Annotated[Path, argument("Any artifact with a manifest, or an ONNX file.", "FILE")],
    /,
    *,
    options: InspectOptions,
    layers: Layers = False,
    as_json: Json = False,
) -> None:
    """Show an artifact's manifest; for an engine also its layers and precision audit.

    With --diff, list the PyTorch layers for which two engines differ in precision, tactic, fusion,
    share of the FLOPs or size.

    Example: resnet-opt inspect model.blob --layers

    Example: resnet-opt inspect fp16.rtx --diff int8.rtx
    """
    from optimizer.errors import PrecisionAuditFailed
    from optimizer.verbs.inspect import inspect as verb

    result = verb(artifact, options)
    say(result.as_json() if as_json else result.as_text(every_layer=layers))
    if result.other is None and result.audit is not None and result.audit.verdict == "fail":
        raise PrecisionAuditFailed(f"{artifact.name}: {result.audit.reason}")


def compare(
    old: Annotated[Path, argument("bench.json, validate.json or results.json.", "OLD")],
    new: Annotated[Path, argument("The same file of another run.", "NEW")],
    /,
    *,
    options: CompareOptions,
    as_json: Json = False,
) -> None:
    """Compare the speed and accuracy of two results, as a gate for CI.

    Example: resnet-opt compare main/bench.json branch/bench.json --max-slowdown 3%
    """
    from optimizer.verbs.compare import compare as verb

    comparison = verb(old, new, options)
    say(comparison.as_json() if as_json else comparison.as_text())
    error = comparison.error()
    if error is not None:
        raise error


def report(
    run_dirs: Annotated[list[Path], argument("Run folders of run or demo.", "FOLDER")],
    /,
    *,
    output: Annotated[
        Path,
        Parameter(name=("--output", "-o"), help="Output file: .html, .md or .csv.", metavar="FILE"),
    ],
    options: ReportOptions,
    force: Force = False,
) -> None:
    """Write the report of one run, or of several side by side.

    Example: resnet-opt report runs/demo -o report.html
    """
    from optimizer.verbs.report import report as verb

    print(verb(run_dirs, output, options, force=force))


# --- machine and data ----------------------------------------------------------------------------


def preprocess(
    *,
    diff: Annotated[str, Parameter(name="--diff", help="A folder of images.", metavar="DATA")],
    options: PreprocessOptions,
    as_json: Json = False,
) -> None:
    """Compare image decoders and resizers with resnet-opt's own on the same images.

    Example: resnet-opt preprocess --diff data/val --model resnet50:IMAGENET1K_V2
    """
    from optimizer.cli.printing import describe_difference
    from optimizer.verbs.preprocess import preprocess as verb

    with _bars() as progress:
        rows = verb(diff, options, progress=progress)
    if as_json:
        raw = [{k: v for k, v in asdict(row).items() if k[0] != "_"} for row in rows]
        print(json.dumps(raw, indent=2))
        return
    print(f"{rows[0].images} images, compared with what resnet-opt reads")
    for row in rows:
        print(f"  {row.pipeline}\n    {describe_difference(row)}")


def doctor(
    *,
    record: Annotated[
        Path | None,
        Parameter(
            name="--record",
            help="Also record how the GPU libraries behave, for a bug report, as FILE.zip (takes "
            "minutes; contains no weights, images, user names or paths).",
            metavar="FILE",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show what this machine can build and run, and how to enable the rest.

    Example: resnet-opt doctor

    Example: resnet-opt doctor --record gpu.zip
    """
    from optimizer.cli.printing import print_environment
    from optimizer.verbs.machine import doctor as verb

    environment = verb()
    if as_json:
        print(environment.model_dump_json(indent=2))
    else:
        print_environment(environment)
    if record is not None:
        from optimizer.gpu_record import record as write_record

        with _bars() as progress:
            write_record(record, force=force, progress=progress)
        print(record, file=sys.stderr if as_json else sys.stdout)


def show_version(*, as_json: Json = False) -> None:
    """Print the version, from a checkout with its commit; with --json also of all libraries."""
    from dataclasses import asdict

    from optimizer.installed import Installation

    here = Installation.here()
    if as_json:
        print(json.dumps(asdict(here), indent=2))
        return
    print(f"resnet-opt {here.version}" + (f" ({here.commit})" if here.commit else ""))


def clean(
    *,
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", negative="", help="Only list what would be deleted.")
    ] = False,
) -> None:
    """Delete the artifact cache. Files written with -o are kept.

    It also removes what killed runs left in the cache, in the current folder and in the folder for
    temporary files.

    Example: resnet-opt clean

    Example: resnet-opt clean --dry-run
    """
    from optimizer.cli.printing import print_cache
    from optimizer.verbs.machine import clean as verb

    removed = verb(dry_run=dry_run, before=print_cache)
    freed = f"{removed.freed_bytes / 1e6:.1f} MB"
    where = f"in {removed.root}" if dry_run else f"removed from {removed.root}"
    print(f"{removed.count} artifacts, {freed} {where}")


PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "The main job": (demo, run),
    "Its steps": (
        train,
        prune,
        latency_table,
        export,
        calibrate,
        quantize,
        build,
        refit,
        validate,
        bench,
        profile,
    ),
    "Results": (predict, inspect, compare, report),
    "Machine and data": (preprocess, doctor, clean),
}  # fmt: skip
"""The commands by heading, in the order of help."""


# --- shared helpers ------------------------------------------------------------------------------


def _bars() -> Any:
    """Progress shown on stderr."""
    from optimizer.cli.console import progress

    return progress()


def _file(output: Path) -> Path | None:
    """Where a verb writes its result; nowhere for ``-o -``."""
    return None if output == STDOUT else output


def _printed_to_stdout(result: Any, output: Path) -> bool:
    """Write a result to standard output for ``-o -``, as its file would be."""
    from optimizer.results import result_text

    if output == STDOUT:
        print(result_text(result), end="")
    return output == STDOUT


def _cache(disabled: bool) -> Any:
    """The user's cache, or one that rebuilds everything."""
    from optimizer.artifacts import Cache, DisabledCache

    return DisabledCache() if disabled else Cache.default(**_lock_timeout)


_lock_timeout: dict[str, float] = {}


def set_lock_timeout(seconds: float | None) -> None:
    """Set how long commands wait for another process; ``None`` for the default."""
    _lock_timeout.clear()
    if seconds is not None:
        _lock_timeout["lock_seconds"] = seconds


def _command() -> str:
    return shlex.join(["resnet-opt", *sys.argv[1:]])


def _print_artifact(artifact: Any, as_json: bool, *lines: str | None, **more: Any) -> None:
    from optimizer.cli.printing import print_artifact

    print_artifact(artifact, as_json, *lines, **more)


def _search_details(search: Any) -> dict[str, Any]:
    """The search as part of the ``--json`` output."""
    return {} if search is None else {"search": search.model_dump(mode="json")}


def _raise_for_search(search: Any) -> None:
    """Raise if the validation of a search failed or was inconclusive."""
    from optimizer.evaluation import raise_for_verdict

    if search is not None and search.validation is not None:
        raise_for_verdict(search.validation)


def _save_recipe(recipe: Any, path: Path, source: str | None, *, force: bool) -> None:
    from optimizer.artifacts import OutputFile, check_outputs
    from optimizer.recipe import save_recipe

    file = OutputFile(path, "recipe", has_manifest=False, option="--save-recipe")
    check_outputs([file], [source], force=force)
    save_recipe(recipe, path)
    print(path)


def _finish_run(result: Any, folder: Path, as_json: bool) -> None:
    from optimizer.cli.printing import print_run
    from optimizer.verbs.run import verdict_of

    print_run(result, folder, as_json)
    error = verdict_of(result)
    if error is not None:
        raise error
