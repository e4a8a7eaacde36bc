"""The verb ``build``: compile and audit an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Artifact, Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import (
    BuildOptions,
    ExportOptions,
    ForeignGraph,
    QuantizeOptions,
    check_engine,
    flag,
    takes_options,
)
from optimizer.progress import Progress
from optimizer.verbs.audit import audit
from optimizer.verbs.outcomes import BuildResult
from optimizer.verbs.planned_files import engine_files
from optimizer.verbs.quantize import (
    check_labels_from,
    conversion_inputs,
    convert,
    imported,
    judge_search,
    search_path,
)

if TYPE_CHECKING:
    from optimizer.graphs.facts import GraphFacts

__all__ = ["build"]


@takes_options(BuildOptions)
def build(
    graph: Path | str,
    output: Path | str,
    options: BuildOptions,
    *,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Compile an engine and check that it computes in the requested precision.

    The converted graph is written first, beside the engine (``<output>.graph.onnx``); calibration
    and search work as in `quantize`.

    Args:
        graph: An FP32 graph, or a graph that already has the precision; or a checkpoint or model
            name, which is exported first (``<output>.fp32.onnx``, unless the engine is PyTorch's).
        output: The engine file.
        options: See below.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Returns:
        The engine with its audit, whose verdict may be ``fail``; no exception is raised for it.

    Raises:
        UsageError: An option that the engine does not take, or that would have no effect.
        GraphError: The graph cannot be read or compiled.
        EnvironmentFault: The engine cannot be built on this machine.
        BuildError: The library failed, crashed, or exceeded a limit.
    """
    from optimizer.engines.build_settings import settings_of
    from optimizer.engines.building import Limits, build_engine, check_buildable
    from optimizer.engines.opening import GRAPH_SUFFIX
    from optimizer.engines.registry import get_backend
    from optimizer.graphs.facts import graph_facts
    from optimizer.models import is_model

    graph, output = Path(graph), Path(output)
    options = _with_engine(options)
    engine, target = options.engine, _target_of(options)
    check_labels_from(options, options.precision)
    job = _Job(output, cache, force, progress)
    remarks: list[str] = []
    if is_model(graph):
        graph, remarks = _of_model(graph, options, engine, job)
    elif given := options.of_kind(ExportOptions).as_given():
        flags = ", ".join(map(flag, given))
        raise UsageError(f"{flags}: {graph.name} is a graph", hint=f"leave out {flags}")
    check_buildable(get_backend(engine), settings_of(options, None))
    graph, options, facts = _checked_source(graph, options, job)
    settings = settings_of(options, facts)
    check_buildable(get_backend(engine), settings)

    source, search = graph, None
    if facts is not None and facts.precision == "fp32" and options.precision != "fp32":
        source = output.with_name(output.name + GRAPH_SUFFIX)
        explicit = options.of_kind(QuantizeOptions, target=target)
        _, search = convert(
            graph, source, explicit, result_path=search_path(output), cache=cache, progress=progress
        )
        # A search may keep no layer, which leaves INT8; INT8 with --keep is mixed.
        settings = replace(settings, precision=graph_facts(source).precision)
    artifact = build_engine(
        source,
        output,
        engine,
        settings,
        cache=cache,
        limits=Limits(seconds=options.build_timeout, memory_bytes=options.memory_limit),
        progress=progress,
    )
    if search is not None and options.data is not None:
        search = judge_search(artifact.path, graph, search_path(output), options, progress)
    return BuildResult.of(
        artifact,
        audit=audit(artifact, min_share=options.min_share),
        search=search,
        remarks=tuple(remarks),
    )


@dataclass(frozen=True)
class _Job:
    """What every step of a build needs."""

    output: Path
    cache: Cache | None
    force: bool
    progress: Progress | None


def _of_model(model: Path, options: BuildOptions, engine: str, job: _Job) -> tuple[Path, list[str]]:
    """What an engine is built from if the source is a model, and remarks on its weights."""
    if engine == "torch":
        return _checkpoint(model, options, job)
    check_options_buildable(options)
    exported = job.output.with_name(job.output.name + ".fp32.onnx")
    check_outputs([OutputFile(exported, "graph")], [model], force=job.force)
    return exported, _export(str(model), exported, options, job)


def _checked_source(
    graph: Path, options: BuildOptions, job: _Job
) -> tuple[Path, BuildOptions, GraphFacts | None]:
    """Check outputs and options, and import an ONNX file of another exporter.

    Returns:
        What to build; the options that still apply; facts about a graph, or ``None``.
    """
    from optimizer.graphs.facts import graph_facts
    from optimizer.models import is_model
    from optimizer.precision import check_options

    foreign = _needs_import(graph, options)
    facts = None if is_model(graph) else graph_facts(graph, options.of_kind(ForeignGraph))
    precision = None if facts is None else "fp32" if foreign else facts.precision
    files = engine_files(graph, job.output, options, precision=precision, imported=foreign)
    inputs = [graph, options.timing_cache, *conversion_inputs(options)]
    check_outputs(files, inputs, force=job.force)
    if not foreign:
        check_options(graph, options.precision, options)
        return graph, options, facts
    graph, options = imported(graph, job.output, options, cache=job.cache, progress=job.progress)
    return graph, options, graph_facts(graph)


def _export(model: str, exported: Path, options: BuildOptions, job: _Job) -> list[str]:
    """Export a model for this build, after the checks that need no graph; returns remarks."""
    from optimizer.data import open_dataset
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    if options.precision in {"int8", "fp8", "mixed"} and not (
        options.calib or options.stats or options.encodings
    ):
        raise UsageError(
            f"{options.precision.upper()} needs calibration data",
            hint="use --calib DATA (digits:train, a folder, file.npz)",
        )
    if options.preprocessing_from is not None:
        raise UsageError(
            f"--preprocessing-from is for graphs; {model} states its own preprocessing",
            hint="leave it out",
        )
    loaded = load_model(
        model, arch=options.arch, image_size=options.image_size, weights=options.weights
    )
    for data in (options.calib, options.data):
        if data is not None:
            open_dataset(data, labelled=False, workers=0).check_depth(loaded.preprocessing)
    return _remarks(export_onnx(loaded, exported, cache=job.cache, progress=job.progress))


def _remarks(exported: Artifact) -> list[str]:
    """What the user should know about the weights that were exported."""
    details = exported.manifest.details
    assumed = "preprocessing was assumed to be ImageNet's: the weights do not state it"
    return [*details.get("notes", ()), *([assumed] if details.get("preprocessing_assumed") else ())]


def _checkpoint(model: Path, options: BuildOptions, job: _Job) -> tuple[Path, list[str]]:
    """The checkpoint for PyTorch's engine, written first (``<output>.model.safetensors``) if needed.

    It is needed for a model name, and for options that decide how a checkpoint is read.
    """
    from optimizer.models import load_model, save_checkpoint

    if model.is_file() and not options.of_kind(ExportOptions).as_given():
        return model, []
    loaded = load_model(
        str(model), arch=options.arch, image_size=options.image_size, weights=options.weights
    )
    stem = job.output.name.removesuffix(".safetensors")
    written = job.output.with_name(f"{stem}.model.safetensors")
    check_outputs([OutputFile(written, "checkpoint")], [model], force=job.force)
    return save_checkpoint(loaded, written, details={}).path, list(loaded.remarks)


def _with_engine(options: BuildOptions) -> BuildOptions:
    """The options with the engine, and perhaps the provider, that ``auto`` stands for here."""
    from optimizer.engines.choice import Chosen, choose_engine

    if options.provider_options and options.provider is None:
        raise UsageError("--provider-option without a provider", hint="add --provider NAME")
    if options.engine == "auto":
        named = Chosen("onnxruntime", options.provider) if options.provider else None
        chosen = named or choose_engine(options.precision)
        given = {k: v for k, v in chosen._asdict().items() if v is not None}
        options = options.model_copy(update=given)
    check_engine(options, [options.engine])
    return options


def _target_of(options: BuildOptions) -> str:
    """The target whose rules an engine's INT8 graph follows."""
    from optimizer.engines.providers import lowering_target

    return lowering_target(options.engine, options.provider)


def check_options_buildable(options: BuildOptions) -> str:
    """Check that an engine can be built on this machine, before a search for its graph.

    Returns:
        The target whose rules its INT8 graph follows.

    Raises:
        UsageError, MissingLibrary, UnsupportedPrecision: It cannot be built.
    """
    from optimizer.engines.build_settings import settings_of
    from optimizer.engines.building import check_buildable
    from optimizer.engines.registry import get_backend

    options = _with_engine(options)
    check_buildable(get_backend(options.engine), settings_of(options, None))
    return _target_of(options)


def _needs_import(graph: Path, options: BuildOptions) -> bool:
    """Whether an FP32 graph must be written before anything else is done with this file."""
    from optimizer.models import is_model
    from optimizer.precision import is_quantized
    from optimizer.precision.foreign import needs_import

    if is_model(graph):
        return False
    _check_foreign_options(graph, options)
    return not is_quantized(graph) and needs_import(graph, options.of_kind(ForeignGraph))


def _check_foreign_options(graph: Path, options: BuildOptions) -> None:
    from optimizer.graphs.metadata import metadata_of
    from optimizer.precision import is_quantized

    given = [flag(name) for name in options.of_kind(ForeignGraph).as_given()]
    if given and (is_quantized(graph) or metadata_of(graph).precision != "fp32"):
        raise UsageError(
            f"build takes {', '.join(given)} only for FP32 graphs",
            hint="resnet-opt quantize takes it for a graph that is already INT8",
        )
