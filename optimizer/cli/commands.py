"""The commands: each parses, calls one verb, and prints what came out.

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

from optimizer.cli.flags import Json, NoCache, Output, argument
from optimizer.options import (
    BenchOptions,
    BuildOptions,
    CalibrateOptions,
    CompareOptions,
    ExportOptions,
    InspectOptions,
    PredictOptions,
    PreprocessOptions,
    ProfileOptions,
    QuantizeOptions,
    RefitOptions,
    ReportOptions,
    TrainOptions,
    ValidateOptions,
)
from optimizer.recipe import DemoOptions, RunOptions

__all__ = ["PANELS"]

Graph = Annotated[Path, argument("An FP32 ONNX file, or a Q/DQ one.", "GRAPH")]
Engines = Annotated[list[Path], argument("Engines or checkpoints.", "ENGINE")]
Folder = Annotated[
    Path | None,
    Parameter(
        name=("--output", "-o"), help="The run folder; default: runs/NAME.", metavar="FOLDER"
    ),
]
SaveRecipe = Annotated[
    Path | None,
    Parameter(
        name="--save-recipe",
        help="Write the recipe here and stop; edit it, give it to run.",
        metavar="FILE",
    ),
]
Layers = Annotated[bool, Parameter(name="--layers", negative="", help="Print every layer.")]


def _result_file(name: str) -> Any:
    return Parameter(
        name=("--output", "-o"), help=f"Where the result goes. [default: {name}]", metavar="FILE"
    )


# --- the main job --------------------------------------------------------------------------------


def demo(
    *,
    options: DemoOptions,  # type: ignore[valid-type]
    output: Folder = None,
    save_recipe: SaveRecipe = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Run the main job on bundled real data; nothing is downloaded.

    It trains the network on 1,257 handwritten digits, takes it to FP32, FP16, BF16 and INT8 as
    OpenVINO, ONNX Runtime and TensorRT-RTX compute them, validates on 540 others, measures, and
    writes the report.

    Example: resnet-opt demo
    """
    from optimizer.verbs import run as job

    if save_recipe is not None:
        _save_recipe(job.demo_recipe(options), save_recipe)
        return
    arch = getattr(options, "arch", None) or "resnet50"
    folder = output or Path("runs") / ("demo" if arch == "resnet50" else f"demo-{arch}")
    with _bars() as progress:
        result = job.demo(
            folder, options=options, command=_command(), cache=_cache(no_cache), progress=progress
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
    as_json: Json = False,
) -> None:
    """Take a model from checkpoint to engines and report, in one folder.

    Example: resnet-opt run resnet50:IMAGENET1K_V2 --data /data/imagenet/val

    Example: resnet-opt run recipe.yaml -o runs/tuesday
    """
    from optimizer.verbs import run as job

    if save_recipe is not None:
        _save_recipe(job.run_recipe(source, options), save_recipe)
        return
    folder = output or job.default_folder(source)
    with _bars() as progress:
        result = job.run(
            source,
            folder,
            options=options,
            command=_command(),
            cache=_cache(no_cache),
            progress=progress,
        )
    _finish_run(result, folder, as_json)


# --- its steps -----------------------------------------------------------------------------------


def train(
    *, output: Output, options: TrainOptions, no_cache: NoCache = False, as_json: Json = False
) -> None:
    """Train a ResNet into a checkpoint.

    Example: resnet-opt train --arch resnet50 --data digits:train -o model.safetensors
    """
    from optimizer.verbs.train import train as verb

    with _bars() as progress:
        made = verb(output, options, cache=_cache(no_cache), progress=progress)
    top1 = f"top-1 {made.top1:.2%} on held-out images" if made.top1 is not None else None
    _print_made(made, as_json, top1)


def export(
    model: Annotated[
        str,
        argument(
            "A checkpoint, resnet50:IMAGENET1K_V2, timm:resnet50.a1_in1k or resnet50:random.",
            "MODEL",
        ),
    ],
    /,
    *,
    output: Output,
    options: ExportOptions,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, checked against PyTorch.

    Example: resnet-opt export resnet50:IMAGENET1K_V2 -o model.onnx
    """
    from optimizer.cli.printing import preprocessing_note
    from optimizer.verbs.export import export as verb

    with _bars() as progress:
        made = verb(model, output, options, cache=_cache(no_cache), progress=progress)
    _print_made(
        made,
        as_json,
        f"differs from PyTorch by at most {made.max_relative_difference:.1e} of the largest logit",
        preprocessing_note(made, model) if made.preprocessing_assumed else None,
    )


def calibrate(
    graph: Graph,
    /,
    *,
    output: Output,
    options: CalibrateOptions,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Take calibration statistics: one pass that serves every target and method.

    Of a graph that is INT8 already, the float graph that it stands for is calibrated.

    Example: resnet-opt calibrate model.onnx --calib digits:train -o model.stats.npz

    Example: resnet-opt calibrate model.onnx --calib data/train --halves -o model.stats.npz
    """
    from optimizer.cli.printing import halves_lines
    from optimizer.verbs.calibrate import calibrate as verb

    with _bars() as progress:
        made = verb(graph, output, options, cache=_cache(no_cache), progress=progress)
    details = {"halves": [asdict(one) for one in made.halves]} if made.halves else {}
    tensors, notes = (made.manifest.details[name] for name in ("tensors", "notes"))
    lines = [f"{tensors} tensors", *notes, *halves_lines(made.halves)]
    _print_made(made, as_json, *lines, details=details)


def quantize(
    graph: Graph,
    /,
    *,
    output: Output,
    options: QuantizeOptions,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Write the explicit graph of another precision, without compiling it.

    A graph that carries Q/DQ already (ModelOpt, ONNX Runtime, NNCF, QAT) is lowered again for the
    target with its own integers and ranges; --calib measures what it leaves in float. --precision
    fp32 gives its float graph.

    Example: resnet-opt quantize model.onnx --target tensorrt --calib digits:train -o int8.onnx

    Example: resnet-opt quantize model.onnx --calib digits:train --keep conv1,fc -o int8.onnx

    Example: resnet-opt quantize int8.onnx --preprocessing-from model.onnx -o q.onnx
    """
    from optimizer.cli.printing import search_lines
    from optimizer.verbs.quantize import quantize as verb

    with _bars() as progress:
        made = verb(graph, output, options, cache=_cache(no_cache), progress=progress)
    pairs, notes = (made.manifest.details.get(name) for name in ("pairs", "notes"))
    lines = [f"{pairs} tensors with Q/DQ" if pairs else None, *(notes or ())]
    lines += search_lines(made.search)
    _print_made(made, as_json, *lines, details=_search_details(made.search))
    _raise_for_search(made.search)


def build(
    graph: Annotated[Path, argument("An ONNX file (a checkpoint for --engine torch).", "GRAPH")],
    /,
    *,
    output: Output,
    options: BuildOptions,
    fp16: Annotated[
        bool, Parameter(name="--fp16", negative="", help="The same as --precision fp16.")
    ] = False,
    int8: Annotated[
        bool, Parameter(name="--int8", negative="", help="The same as --precision int8.")
    ] = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Compile an engine and audit that it computes what was requested.

    Example: resnet-opt build model.onnx --precision int8 --calib digits:train -o model.blob

    Example: resnet-opt build model.onnx --fp16 --engine tensorrt-rtx --target sm89 -o model.rtx

    Example: resnet-opt build model.onnx --fp16 --engine onnxruntime --provider cuda -o model.ort.onnx

    Example: resnet-opt build model.onnx --precision fp8 --target sm89 --calib data/train -o model.rtx

    Example: resnet-opt build int8.onnx --int8 --engine tensorrt --profile 1:1:1 --profile 8:32:64 -o m.plan

    Example: resnet-opt build model.onnx --precision mixed --calib digits:train --data digits:test -o m.blob
    """
    from optimizer.cli.printing import search_lines
    from optimizer.engines.registry import get_backend
    from optimizer.errors import PrecisionAuditFailed, UsageError
    from optimizer.verbs.build import build as verb

    if fp16 and int8:
        raise UsageError("--fp16 and --int8 together", hint="build one engine for each")
    if fp16 or int8:
        options = options.model_copy(update={"precision": "fp16" if fp16 else "int8"})
    with _bars() as progress:
        made = verb(graph, output, options, cache=_cache(no_cache), progress=progress)
    backend = str(made.manifest.settings["backend"])  # known only now with --engine auto
    here = get_backend(backend).availability()
    lines = [f"{backend}: {made.audit.reason}", *made.manifest.details.get("notes", [])]
    if not here.can_run:
        lines.append(f"it cannot run here: {here.reason}")
    lines += search_lines(made.search)
    details = {"audit": made.audit.model_dump(mode="json"), **_search_details(made.search)}
    _print_made(made, as_json, *lines, details=details)
    _raise_for_search(made.search)
    if made.audit.verdict == "fail":
        raise PrecisionAuditFailed(
            f"{made.path.name}: {made.audit.reason}", hint="resnet-opt inspect lists every layer"
        )


def refit(
    engine: Annotated[
        Path, argument("An engine built with --refittable or --strip-weights.", "ENGINE")
    ],
    model: Annotated[
        str,
        argument("A checkpoint or a model's name, or an ONNX file of the same network.", "MODEL"),
    ],
    /,
    *,
    output: Output,
    options: RefitOptions,
    as_json: Json = False,
) -> None:
    """Put other weights of the same network into a TensorRT engine, without building it again.

    The graph that the engine was built from must lie beside it. An engine in INT8 or FP8 takes an
    ONNX file with the same scales, and no checkpoint: its scales belong to the weights it was
    calibrated with. Needs a GPU.

    Example: resnet-opt refit model.plan tuesday.safetensors -o tuesday.plan
    """
    from optimizer.verbs.refit import refit as verb

    with _bars() as progress:
        made = verb(engine, model, output, options, progress=progress)
    _print_made(made, as_json, f"{engine.name} with the weights of {model}")


def validate(
    engines: Annotated[list[Path], argument("Engines, graphs or checkpoints.", "ENGINE")],
    /,
    *,
    options: ValidateOptions,
    output: Annotated[Path, _result_file("validate.json")] = Path("validate.json"),
    as_json: Json = False,
) -> None:
    """Prove the accuracy hop by hop: PyTorch, ONNX, the graph as written, the engine.

    Example: resnet-opt validate model.blob --reference model.safetensors --data digits:test
    """
    from optimizer.cli.printing import print_validated
    from optimizer.evaluation import raise_for_verdict
    from optimizer.evaluation.shards import is_first_process
    from optimizer.verbs.validate import validate as verb

    with _bars() as progress:
        result = verb(engines, options, output=output, progress=progress)
    if not is_first_process():  # torchrun: every process has the same result
        return
    print_validated(result, output, as_json)
    raise_for_verdict(result)


def bench(
    engines: Engines,
    /,
    *,
    options: BenchOptions,
    output: Annotated[Path, _result_file("bench.json")] = Path("bench.json"),
    as_json: Json = False,
) -> None:
    """Measure latency and throughput: a process per engine, rounds in random order, intervals.

    Several batches, threads or streams are a sweep of every combination, with the knee of each
    curve. Engines are compared at the first number of threads and of streams. LoadGen's server
    scenario looks for the highest rate whose p99 holds --max-latency (15ms without it).

    Example: resnet-opt bench model.blob --against model.safetensors --batch 1,8 --duration 10s

    Example: resnet-opt bench model.blob --batch 1,2,4,8,16,32 --streams 1,2 --max-latency 15ms
    """
    from optimizer.cli.printing import print_measured
    from optimizer.errors import BuildError, Inconclusive, PerformanceRegression
    from optimizer.verbs.bench import bench as verb

    with _bars() as progress:
        result = verb(engines, options, output=output, progress=progress)
    print_measured(result, output, as_json)
    if result.verdict == "fail":
        # Whatever crashed (an engine, a setting of a sweep, a scenario, the control) is no regression.
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
    as_json: Json = False,
) -> None:
    """See where the time goes: every layer and residual block, and how far from the roofline.

    Example: resnet-opt profile model.blob model.safetensors --batch 1 -o profile.json
    """
    from optimizer.cli.printing import print_profile
    from optimizer.errors import BuildError
    from optimizer.verbs.profile import profile as verb

    with _bars() as progress:
        result = verb(engines, options, output=output, progress=progress)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        print_profile(result, every_layer=layers)
        print(f"details in {output}")
    if failed := [f"{one.name} {one.error}" for one in result.engines if one.status == "failed"]:
        raise BuildError("; ".join(failed))


# --- results -------------------------------------------------------------------------------------


def predict(
    engine: Annotated[Path, argument("An engine or a checkpoint.", "ENGINE")],
    images: Annotated[list[Path], argument("Image files, or folders of them.", "IMAGE")],
    /,
    *,
    options: PredictOptions,
    as_json: Json = False,
) -> None:
    """Classify images: the most probable classes.

    Example: resnet-opt predict model.blob cat.jpg dog.png
    """
    from optimizer.verbs.predict import predict as verb

    rows = verb(engine, images, options)
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in rows], indent=2))
        return
    for row in rows:
        print(row.image)
        for name, share in zip(row.classes, row.probabilities, strict=True):
            print(f"  {share:7.2%}  {name}")


def inspect(
    artifact: Annotated[Path, argument("Any artifact with a manifest, or an ONNX file.", "FILE")],
    /,
    *,
    options: InspectOptions,
    layers: Layers = False,
    as_json: Json = False,
) -> None:
    """Show what an artifact is, what an engine computes, and whether that was requested.

    Of two engines, --diff lists by PyTorch layer where precision, tactic, fusion, share of the
    FLOPs and size differ.

    Example: resnet-opt inspect model.blob --layers

    Example: resnet-opt inspect fp16.rtx --diff int8.rtx
    """
    from optimizer.errors import PrecisionAuditFailed
    from optimizer.verbs.inspect import inspect as verb

    shown = verb(artifact, options)
    print(shown.as_json() if as_json else shown.as_text(every_layer=layers))
    if shown.other is None and shown.audit is not None and shown.audit.verdict == "fail":
        raise PrecisionAuditFailed(f"{artifact.name}: {shown.audit.reason}")


def compare(
    old: Annotated[Path, argument("bench.json, validate.json or results.json.", "OLD")],
    new: Annotated[Path, argument("The same of another run.", "NEW")],
    /,
    *,
    options: CompareOptions,
    as_json: Json = False,
) -> None:
    """Compare two results: a gate for CI.

    Example: resnet-opt compare main/bench.json branch/bench.json --max-slowdown 3%
    """
    from optimizer.verbs.compare import compare as verb

    outcome = verb(old, new, options)
    print(outcome.as_json() if as_json else outcome.as_text())
    error = outcome.error()
    if error is not None:
        raise error


def report(
    run_dirs: Annotated[list[Path], argument("Folders of run or demo.", "FOLDER")],
    /,
    *,
    output: Output,
    options: ReportOptions,
) -> None:
    """Write the report of one run, or of several side by side.

    Example: resnet-opt report runs/demo -o report.html
    """
    from optimizer.verbs.report import report as verb

    print(verb(run_dirs, output, options))


# --- machine and data ----------------------------------------------------------------------------


def preprocess(
    *,
    diff: Annotated[str, Parameter(name="--diff", help="A folder of images.", metavar="DATA")],
    options: PreprocessOptions,
    as_json: Json = False,
) -> None:
    """Compare decoders and resizers with each other on the same images.

    Example: resnet-opt preprocess --diff data/val --model resnet50:IMAGENET1K_V2
    """
    from optimizer.cli.printing import difference_words
    from optimizer.verbs.preprocess import preprocess as verb

    with _bars() as progress:
        rows = verb(diff, options, progress=progress)
    if as_json:
        raw = [{k: v for k, v in asdict(row).items() if k[0] != "_"} for row in rows]
        print(json.dumps(raw, indent=2))
        return
    print(f"{rows[0].images} images, compared with what resnet-opt reads")
    for row in rows:
        print(f"  {row.pipeline}\n    {difference_words(row)}")


def doctor(
    *,
    record: Annotated[
        Path | None,
        Parameter(
            name="--record",
            help="Also write what the GPU libraries here do, for a bug report: gpu.zip (minutes; no "
            "weights, images, user names or paths of yours).",
            metavar="FILE",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what this machine can build and run, and the command that would enable the rest.

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
        from optimizer.artifacts import check_output
        from optimizer.gpu_record import record as write_record

        check_output(record)
        with _bars() as progress:
            write_record(record, progress=progress)
        print(record, file=sys.stderr if as_json else sys.stdout)


def clean() -> None:
    """Remove the cache of artifacts. What you named with -o stays.

    Example: resnet-opt clean
    """
    from optimizer.verbs.machine import clean as verb

    done = verb()
    print(f"{done.count} artifacts, {done.freed_bytes / 1e6:.1f} MB removed from {done.root}")


PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "The main job": (demo, run),
    "Its steps": (train, export, calibrate, quantize, build, refit, validate, bench, profile),
    "Results": (predict, inspect, compare, report),
    "Machine and data": (preprocess, doctor, clean),
}
"""The commands by heading, in the order of help."""


# --- what several commands share -----------------------------------------------------------------


def _bars() -> Any:
    """Progress bars on the terminal."""
    from optimizer.cli.console import progress

    return progress()


def _cache(off: bool) -> Any:
    """The user's cache, or one that makes everything again."""
    from optimizer.artifacts import Anew, Cache

    return Anew() if off else Cache.default()


def _command() -> str:
    return shlex.join(["resnet-opt", *sys.argv[1:]])


def _print_made(made: Any, as_json: bool, *lines: str | None, **more: Any) -> None:
    from optimizer.cli.printing import print_made

    print_made(made, as_json, *lines, **more)


def _search_details(search: Any) -> dict[str, Any]:
    """A search as a part of what ``--json`` prints."""
    return {} if search is None else {"search": search.model_dump(mode="json")}


def _raise_for_search(search: Any) -> None:
    """Raise what the validation of a search decided; a pass or no search raises nothing."""
    from optimizer.evaluation import raise_for_verdict

    if search is not None and search.validation is not None:
        raise_for_verdict(search.validation)


def _save_recipe(recipe: Any, path: Path) -> None:
    from optimizer.recipe import save_recipe

    save_recipe(recipe, path)
    print(path)


def _finish_run(result: Any, folder: Path, as_json: bool) -> None:
    from optimizer.cli.printing import print_run
    from optimizer.verbs.run import verdict_of

    print_run(result, folder, as_json)
    error = verdict_of(result)
    if error is not None:
        raise error
