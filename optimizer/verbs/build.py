"""The verb ``build``: an engine, audited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache, check_output
from optimizer.errors import UsageError
from optimizer.options import BuildOptions, QuantizeOptions, check_engine, takes_options
from optimizer.progress import Progress
from optimizer.verbs.audit import audit
from optimizer.verbs.outcomes import BuildResult
from optimizer.verbs.quantize import conversion_inputs, convert, judge_search, search_path

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
    progress: Progress | None = None,
) -> BuildResult:
    """Compile an engine and audit that it computes what was requested.

    The explicit graph is written first, beside the engine (``<output>.graph.onnx``); calibration
    and search are as in `quantize`.

    Args:
        graph: An FP32 graph, a graph that carries the precision already, or a checkpoint for
            ``engine="torch"``.
        output: The engine file.
        options: See below.
        cache: Where artifacts are kept by key.
        progress: Where steps are reported.

    Returns:
        The engine with its audit, which may fail: a verdict is a field, not an exception.

    Raises:
        UsageError: An option that the engine does not have, or that would do nothing.
        GraphError: The graph cannot be read or compiled.
        EnvironmentFault: The engine cannot be built here.
        BuildError: The library failed, crashed, or went beyond a limit.
    """
    from optimizer.engines.build_settings import settings_of
    from optimizer.engines.building import Limits, build_engine, check_buildable
    from optimizer.engines.opening import GRAPH_SUFFIX
    from optimizer.engines.registry import get_backend
    from optimizer.graphs.facts import graph_facts
    from optimizer.precision import check_options, prepared

    graph, output = Path(graph), Path(output)
    check_output(output, [graph, *conversion_inputs(options)])
    check_options(graph, options.precision, options)
    engine, target = _engine_and_target(options)
    facts = None if graph.suffix == ".safetensors" else graph_facts(graph)
    _check_preprocessing_source(options, facts)
    settings = settings_of(options, facts)
    check_buildable(get_backend(engine), settings)

    if options.preprocessing_from is not None:
        graph = prepared(
            graph,
            output,
            preprocessing_from=options.preprocessing_from,
            cache=cache,
            progress=progress,
        )
    source, search = graph, None
    if facts is not None and facts.precision == "fp32" and options.precision != "fp32":
        source = output.with_name(output.name + GRAPH_SUFFIX)
        explicit = options.of_kind(QuantizeOptions, target=target, preprocessing_from=None)
        _, search = convert(
            graph, source, explicit, found=search_path(output), cache=cache, progress=progress
        )
        # A search may keep nothing, and --keep makes a mix of INT8.
        settings = replace(settings, precision=graph_facts(source).precision)
    made = build_engine(
        source,
        output,
        engine,
        settings,
        cache=cache,
        limits=Limits(seconds=options.build_timeout, memory_bytes=options.memory_limit),
        progress=progress,
    )
    if search is not None and options.data is not None:
        search = judge_search(made.path, graph, search_path(output), options, progress)
    return BuildResult.of(made, audit=audit(made, min_share=options.min_share), search=search)


def _engine_and_target(options: BuildOptions) -> tuple[str, str]:
    """The engine's name, and whose rules its INT8 graph follows."""
    from optimizer.engines.choice import choose_engine
    from optimizer.engines.providers import lowering_target

    engine = options.engine
    if engine == "auto":
        engine = "onnxruntime" if options.provider else choose_engine(options.precision)
    if options.provider_options and options.provider is None:
        raise UsageError("--provider-option without a provider", hint="--provider NAME")
    check_engine(options, [engine])
    return engine, lowering_target(engine, options.provider)


def check_options_buildable(options: BuildOptions) -> str:
    """Refuse an engine that cannot be built here, before a search for its graph.

    Returns:
        Whose rules its INT8 graph follows.

    Raises:
        UsageError, MissingLibrary, UnsupportedPrecision: It cannot be built.
    """
    from optimizer.engines.build_settings import settings_of
    from optimizer.engines.building import check_buildable
    from optimizer.engines.registry import get_backend

    engine, target = _engine_and_target(options)
    check_buildable(get_backend(engine), settings_of(options, None))
    return target


def _check_preprocessing_source(options: BuildOptions, facts: GraphFacts | None) -> None:
    if options.preprocessing_from is not None and (facts is None or facts.precision != "fp32"):
        raise UsageError(
            "--preprocessing-from is for FP32 graphs here",
            hint="resnet-opt quantize takes it for a graph that is INT8 already",
        )
