"""The verb ``build``: compile and audit an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Artifact, Cache, OutputFile, check_outputs, scratch_folder
from optimizer.errors import UsageError
from optimizer.options import (
    BuildOptions,
    ForeignGraph,
    ModelReading,
    QuantizeOptions,
    check_engine,
    flag,
    takes_options,
)
from optimizer.progress import Progress
from optimizer.verbs.audit import audit
from optimizer.verbs.outcomes import BuildResult
from optimizer.verbs.planned_files import converted_graph, engine_files, kernel_files
from optimizer.verbs.quantize import (
    check_search_options,
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
    save_intermediates: Path | str | None = None,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Compile an engine and check that it computes in the requested precision.

    What is left is ``output`` with its manifest and, unless the engine is PyTorch's, the graph that it
    was built from (``<output>.graph.onnx``) with its manifest, which `validate` and `profile` read. A
    search adds its result (``<output stem>.search.json``). Calibration and search work as in
    `quantize`; what they compute on the way lies in the cache.

    Args:
        graph: An FP32 graph, or a graph that already has the precision; or a checkpoint or model
            name, which is exported first.
        output: The engine file.
        options: See below.
        save_intermediates: Folder for the files on the way to the engine: an exported or imported
            FP32 graph, statistics, encodings, the converted graph. ``None`` keeps them only in the
            cache.
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
    from optimizer.engines.building import check_buildable
    from optimizer.engines.registry import get_backend
    from optimizer.models import is_model

    graph, output = Path(graph), Path(output)
    options = _with_engine(options)
    engine, target = options.engine, _target_of(options)
    check_search_options(options, options.precision)
    given = options.of_kind(ModelReading).as_given()
    if given and not is_model(graph):
        flags = ", ".join(map(flag, given))
        raise UsageError(f"{flags}: {graph.name} is a graph", hint=f"leave out {flags}")
    check_buildable(get_backend(engine), settings_of(options, None))
    check_outputs([OutputFile(output, "engine")], [graph], force=force)
    saved = None if save_intermediates is None else Path(save_intermediates)
    with _intermediates(saved, output) as folder:
        job = _Job(engine, target, output, folder, cache, force, progress)
        result = _built(graph, options, job)
    return result if saved is not None else replace(result, intermediates=())


@contextlib.contextmanager
def _intermediates(saved: Path | None, output: Path) -> Iterator[Path]:
    """The folder for what is written on the way: the user's, or one that does not outlive the build."""
    if saved is not None:
        beside = saved.resolve() == output.parent.resolve()
        yield output.parent if beside else saved
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder("intermediates", output.parent) as folder:
        yield folder


@dataclass(frozen=True)
class _Job:
    """What every step of a build needs.

    Attributes:
        engine: The engine's name.
        target: The target whose rules its INT8 graph follows.
        output: The engine file.
        folder: Where files on the way to the engine are written.
        cache: See `build`.
        force: See `build`.
        progress: See `build`.
    """

    engine: str
    target: str
    output: Path
    folder: Path
    cache: Cache | None
    force: bool
    progress: Progress | None
    checked: list[OutputFile] = field(default_factory=list)

    def check(self, files: Sequence[OutputFile], inputs: Iterable[Path | str | None]) -> None:
        """`check_outputs`, remembering the files."""
        check_outputs(files, inputs, force=self.force)
        self.checked.extend(files)

    def on_the_way(self) -> tuple[Path, ...]:
        """The files in `folder` that were written and are not the build's result."""
        left = {self.output, converted_graph(self.output, self.output.parent)}
        paths = dict.fromkeys(file.path for file in self.checked)
        return tuple(
            path
            for path in paths
            if path.parent == self.folder and path not in left and path.is_file()
        )


def _built(graph: Path, options: BuildOptions, job: _Job) -> BuildResult:
    from optimizer.engines.build_settings import settings_of
    from optimizer.engines.building import Limits, build_engine, check_buildable
    from optimizer.engines.registry import get_backend
    from optimizer.graphs.facts import graph_facts
    from optimizer.models import is_model

    remarks: list[str] = []
    if is_model(graph):
        graph, remarks = _of_model(graph, options, job)
    graph, options, facts = _checked_source(graph, options, job)
    settings = settings_of(options, facts)
    check_buildable(get_backend(job.engine), settings)

    source, search = graph, None
    if facts is not None and facts.precision == "fp32" and options.precision != "fp32":
        source = converted_graph(job.output, job.folder)
        explicit = options.of_kind(QuantizeOptions, target=job.target)
        result = search_path(job.output)
        _, search = convert(
            graph, source, explicit, result_path=result, cache=job.cache, progress=job.progress
        )
        # A search may keep no layer, which leaves INT8; INT8 with --keep is mixed.
        settings = replace(settings, precision=graph_facts(source).precision)
    artifact = build_engine(
        source,
        job.output,
        job.engine,
        settings,
        cache=job.cache,
        limits=Limits(seconds=options.build_timeout, memory_bytes=options.memory_limit),
        progress=job.progress,
    )
    if search is not None and options.data is not None:
        search = judge_search(
            artifact.path, graph, search_path(job.output), options,
            cache=job.cache, progress=job.progress,
        )  # fmt: skip
    return BuildResult.of(
        artifact,
        audit=audit(artifact, min_share=options.min_share),
        search=search,
        remarks=tuple(remarks),
        intermediates=job.on_the_way(),
    )


def _of_model(model: Path, options: BuildOptions, job: _Job) -> tuple[Path, list[str]]:
    """What an engine is built from if the source is a model, and remarks on its weights."""
    if job.engine == "torch":
        return _checkpoint(model, options, job)
    exported = job.folder / f"{job.output.name}.fp32.onnx"
    job.check([OutputFile(exported, "graph")], [model])
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
    files = engine_files(
        graph, job.output, options, precision=precision, imported=foreign, folder=job.folder
    )
    files += kernel_files(job.output, options)
    job.check(files, [graph, *conversion_inputs(options)])
    if not foreign:
        check_options(graph, options.precision, options)
        return graph, options, facts
    beside = job.folder / job.output.name
    graph, options = imported(graph, beside, options, cache=job.cache, progress=job.progress)
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
    from optimizer.data import Preprocessing

    details, stated = exported.manifest.details, exported.manifest.preprocessing
    notes = [*details.get("notes", ())]
    if details.get("preprocessing_assumed") and stated is not None:
        assumed = Preprocessing.from_dict(stated).in_words
        notes.append(f"preprocessing was assumed, because the weights do not state it: {assumed}")
    return notes


def _checkpoint(model: Path, options: BuildOptions, job: _Job) -> tuple[Path, list[str]]:
    """The checkpoint for PyTorch's engine, written first if needed.

    It is needed for a model name, and for options that decide how a checkpoint is read.
    """
    from optimizer.models import load_model, save_checkpoint

    if model.is_file() and not options.of_kind(ModelReading).as_given():
        return model, []
    loaded = load_model(
        str(model), arch=options.arch, image_size=options.image_size, weights=options.weights
    )
    stem = job.output.name.removesuffix(".safetensors")
    written = job.folder / f"{stem}.model.safetensors"
    job.check([OutputFile(written, "checkpoint")], [model])
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
