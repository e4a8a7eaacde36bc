"""The verbs ``run`` and ``demo``, the main job: from a checkpoint to engines and a report.

Each stage calls another verb and writes an artifact with a manifest; it is skipped if an artifact
of the same inputs, settings, libraries and device exists.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.errors import (
    AccuracyGateFailed,
    BuildError,
    EnvironmentFault,
    Inconclusive,
    PrecisionAuditFailed,
    UsageError,
    Verdict,
)
from optimizer.options import Options, takes_options
from optimizer.progress import Progress, Silent
from optimizer.recipe import (
    DemoOptions,
    Recipe,
    RunOptions,
    load_recipe,
    parse_recipe,
    read_yaml,
    save_recipe,
    with_flags,
)
from optimizer.results import BenchResult, RunResult, ValidateResult, VerdictName, write_result
from optimizer.verbs.job import Job

__all__ = [
    "default_folder",
    "demo",
    "demo_folder",
    "demo_recipe",
    "run",
    "run_recipe",
    "verdict_of",
]

RECIPES = Path(__file__).parent.parent / "recipes"
_DEMOS = {"classification": "demo.yaml", "detection": "demo-detection.yaml"}


@takes_options(RunOptions)
def run(
    source: Recipe | Mapping[str, Any] | Path | str,
    folder: Path | str | None = None,
    *,
    options: Options,
    command: str = "optimizer.run(source, folder)",
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Take a model from checkpoint to engines and report, in one folder.

    Engines that cannot be built or run here are recorded with the reason and do not stop the run.

    Args:
        source: A recipe, its file (``.yaml``), or a model as for `optimizer.export`.
        folder: The run folder, ``runs/<name>`` by default; artifacts in it that are still valid
            are reused.
        options: See below; they override the recipe.
        command: The command line, for the report's "how to repeat".
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Returns:
        The contents of ``results.json``; `verdict_of` turns its verdict into an exception.

    Raises:
        UsageError: The recipe is invalid.
        EnvironmentFault: No engine of the recipe can be built here.
    """
    recipe = run_recipe(source, options)
    folder = default_folder(source) if folder is None else Path(folder)
    job = Job(recipe, folder.resolve(), cache, progress or Silent(), force)
    return _execute(job, source, command)


@takes_options(DemoOptions)
def demo(
    folder: Path | str | None = None,
    *,
    options: Options,
    command: str = "optimizer.demo()",
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Run the main job on bundled real data; nothing is downloaded.

    Args:
        folder: The run folder; `demo_folder` by default.
        options: See below.
        command: The command line, for the report's "how to repeat".
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.
    """
    recipe = demo_recipe(options)
    folder = folder or demo_folder(options)
    job = Job(recipe, Path(folder).resolve(), cache, progress or Silent(), force)
    return _execute(job, None, command)


def run_recipe(source: Recipe | Mapping[str, Any] | Path | str, options: Options) -> Recipe:
    """The recipe that ``run`` executes: the source, overridden by the options.

    Raises:
        UsageError: An invalid key or value, or an unknown engine; the message names it.
    """
    if isinstance(source, Recipe):
        raw: Mapping[str, Any] = source.written()
        if source.bench is None:
            raw = {**raw, "bench": None}
    elif isinstance(source, Mapping):
        raw = source
    elif _is_recipe(source):
        load_recipe(Path(source))  # so that errors in the file name the file
        raw = read_yaml(Path(source))
    else:
        raw = {"title": str(source), "model": str(source), "build": _default_builds()}
    recipe = parse_recipe(with_flags(raw, options))
    _check_engines(recipe)
    return recipe


def _check_engines(recipe: Recipe) -> None:
    """Refuse unknown engines before anything is made."""
    from optimizer.engines import get_backend

    named = {
        f"build.{number}.engine": section.engine for number, section in enumerate(recipe.build)
    }
    if recipe.prune is not None and recipe.prune.engine is not None:
        named["prune.engine"] = (recipe.prune.engine,)
    for key, engines in named.items():
        for engine in engines:
            if engine == "auto":
                continue
            try:
                get_backend(engine)
            except UsageError as error:
                raise UsageError(f"{key}: {error.message}", hint=error.hint) from error


def demo_recipe(options: Options) -> Recipe:
    """The recipe that ``demo`` executes."""
    raw = _demo(options)
    given = options.as_given()
    if "arch" in given:
        raw["train"]["arch"] = given["arch"]
    if "duration" in given:
        raw["bench"]["duration"] = given["duration"]
    return parse_recipe(raw)


def demo_folder(options: Options) -> Path:
    """The run folder of ``demo``: ``runs/demo``, with the task or an architecture of your own."""
    recipe, usual = demo_recipe(options), _demo(options)["train"]["arch"]
    assert recipe.train is not None
    if recipe.train.arch != usual:
        return Path("runs") / f"demo-{recipe.train.arch}"
    return Path("runs") / Path(_DEMOS[options.task]).stem  # type: ignore[attr-defined]


def _demo(options: Options) -> dict[str, Any]:
    return read_yaml(RECIPES / _DEMOS[options.task])  # type: ignore[attr-defined]


def _is_recipe(source: Path | str) -> bool:
    return str(source).endswith((".yaml", ".yml"))


def default_folder(source: object) -> Path:
    """``runs/NAME``, where NAME is the recipe's file name or the model's name."""
    if isinstance(source, (Recipe, Mapping)):
        return Path("runs") / "run"
    text = str(source)
    return Path("runs") / (
        Path(text).stem if _is_recipe(text) else Path(text.replace(":", "-")).name
    )


def _default_builds() -> list[dict[str, Any]]:
    """Every engine that this machine can build, with the precisions it computes."""
    from optimizer.engines import backends
    from optimizer.engines.providers.status import provider_status
    from optimizer.engines.providers.table import CUDA

    builds: list[dict[str, Any]] = []
    for name, backend in backends().items():
        if name == "torch" or not backend.availability().can_build:
            continue
        half = ["fp16"] if name.startswith("tensorrt") else []
        builds.append({"engine": name, "precision": ["fp32", *half, "int8"]})
    if provider_status(CUDA).usable:
        builds.append(
            {"engine": "onnxruntime", "provider": CUDA.name, "precision": ["fp32", "fp16"]}
        )
    return builds


def _execute(job: Job, source: object, command: str) -> RunResult:
    from optimizer.environment import describe
    from optimizer.reporting import write_report
    from optimizer.reporting.findings import findings

    recipe = job.recipe
    recipe_file = _check_folder(job, source)
    started = time.perf_counter()
    # First, so that what cannot be used is reported before the work.
    if job.pruning is not None:
        job.pruning.check(recipe)
    images = job.open_images()
    job.folder.mkdir(parents=True, exist_ok=True)
    if recipe_file is not None:
        save_recipe(recipe, recipe_file)
    checkpoint = job.make_checkpoint()
    job.check_images(checkpoint, images)
    for name, weights in {"": checkpoint, **job.prune(checkpoint, images)}.items():
        job.add_network(name, weights, images)
    for network, section in itertools.product(job.networks, recipe.build):
        job.build_section(section, network, images)
    if not job.engines:
        reasons = "; ".join(f"{s.label}: {s.note}" for s in job.stages if s.status != "ok")
        raise EnvironmentFault(f"no engine could be built: {reasons}", hint="resnet-opt doctor")
    validated = job.validate(images)
    measured = job.bench()
    result = RunResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=recipe.title,
        command=command,
        recipe=recipe.written(),
        environment=describe().model_dump(mode="json"),
        stages=job.stages,
        validate_=validated,
        bench=measured,
        audits=job.audits,
        verdict=_verdict(job, validated, measured),
        findings=findings(validated, measured, job.audits, job.stages),
        seconds=time.perf_counter() - started,
    )
    write_result(result, job.folder / "results.json")
    for suffix in (".html", ".md"):
        write_report([job.folder], job.folder / f"report{suffix}")
    return result


def _check_folder(job: Job, source: object) -> Path | None:
    """Check everything that the run will write.

    Returns:
        The file for the recipe; ``None`` if it is there already, perhaps in the user's own words.
    """
    recipe, folder = job.recipe, job.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="-o FOLDER")
    recipe_file: Path | None = folder / "recipe.yaml"
    files = job.files()
    with contextlib.suppress(UsageError):
        if load_recipe(folder / "recipe.yaml") == recipe:
            recipe_file = None
    if recipe_file is not None:
        files.append(OutputFile(recipe_file, "recipe", has_manifest=False))
    read: list[str | Path | None] = [recipe.model, recipe.train.init if recipe.train else None]
    read += [recipe.calibrate.calib, recipe.validation.data if recipe.validation else None]
    read += [recipe.prune.data, recipe.prune.table] if recipe.prune else []
    named = str(source) if isinstance(source, (str, Path)) else None
    check_outputs(files, [*read, named], force=job.force)
    return recipe_file


def _verdict(
    job: Job, validated: ValidateResult | None, measured: BenchResult | None
) -> VerdictName:
    verdicts: list[VerdictName] = [audit.verdict for audit in job.audits.values()]
    verdicts += [part.verdict for part in (validated, measured) if part is not None]
    if "fail" in verdicts or any(stage.status == "failed" for stage in job.stages):
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def verdict_of(result: RunResult) -> Verdict | BuildError | None:
    """The error that a run ends with; ``None`` if its verdict is ``pass``.

    In this order: a failed build, lost accuracy, a precision other than requested, an engine that
    failed in the benchmark; then inconclusive results.
    """
    failed = [s for s in result.stages if s.status == "failed"]
    if failed:
        return BuildError(f"{failed[0].label} could not be built: {failed[0].note}")
    validated, measured = result.validate_, result.bench
    audits = {**result.audits, **(validated.audits if validated else {})}
    wrong = [f"{name}: {a.reason}" for name, a in audits.items() if a.verdict == "fail"]
    if (
        validated is not None
        and validated.verdict == "fail"
        and not (wrong and _accuracy_is_kept(validated))
    ):
        return AccuracyGateFailed(validated.finding)
    if wrong:
        return PrecisionAuditFailed(wrong[0])
    if measured is not None and measured.verdict == "fail":
        return BuildError(measured.reason)
    undecided = []
    if validated is not None and validated.verdict == "inconclusive":
        undecided.append(validated.finding)
    undecided += [f"{n}: {a.reason}" for n, a in audits.items() if a.verdict == "inconclusive"]
    if measured is not None and measured.verdict == "inconclusive":
        undecided.append(measured.reason)
    if undecided or result.verdict != "pass":
        return Inconclusive("; ".join(undecided) or f"the run ended with {result.verdict}")
    return None


def _accuracy_is_kept(validated: ValidateResult) -> bool:
    """Whether accuracy is within its limits, regardless of the audits."""
    lost = any(hop.verdict == "fail" for hop in validated.hops)
    return not (lost or any(check.verdict == "fail" for check in validated.batch_consistency))
