"""Every engine of a recipe, built and audited."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer import verbs
from optimizer.artifacts import Artifact
from optimizer.errors import BuildError, EnvironmentFault, UnsupportedPrecision
from optimizer.recipe import BuildSection, Recipe
from optimizer.results import SearchResult, StageRecord, read_result
from optimizer.stages.state import Run
from optimizer.units import (
    parse_bytes,
    parse_duration,
    parse_pp,
    parse_share,
)

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.engines import Backend
    from optimizer.engines.building import Limits
    from optimizer.precision.int8 import EncodingOptions

__all__ = ["build_engines"]


def build_engines(
    state: Run,
    section: BuildSection,
    checkpoint: Artifact,
    graph: Artifact,
    statistics: Artifact | None,
    pool: ImageDataset | None,
) -> None:
    """Build and audit every engine of a section; what cannot be built is recorded, not raised."""
    from optimizer.engines import BuildSettings, get_backend
    from optimizer.engines.building import check_buildable
    from optimizer.engines.choice import choose_engine

    for asked in section.engine:
        for precision in section.precision:
            started = time.perf_counter()
            label = f"{asked} {precision}"
            try:
                name = choose_engine(precision) if asked == "auto" else asked
                backend = get_backend(name)
                provider = _provider(section, name)
                stem = f"{name}-{provider}" if provider else name
                label = f"{stem} {precision}"
                output = state.folder / "engines" / f"{stem}-{precision}{backend.suffix}"
                source = checkpoint if name == "torch" else graph
                if precision == "mixed":
                    asked_of = {"provider": provider} if provider else {}
                    check_buildable(backend, BuildSettings(precision=precision, options=asked_of))
                    assert pool is not None
                    source = _search(state, section, name, output, graph, pool)
                with state.stage("build", label) as keep:
                    engine = keep(
                        _one_engine(state, section, name, precision, output, source, statistics)
                    )
            except (UnsupportedPrecision, EnvironmentFault, BuildError) as error:
                state.stages.append(
                    StageRecord(
                        name="build",
                        label=label,
                        seconds=time.perf_counter() - started,
                        status="failed" if isinstance(error, BuildError) else "unavailable",
                        note=error.message,
                        manifest={"settings": {"backend": asked, "precision": precision}},
                    )
                )
                continue
            audit = verbs.audit_engine(engine, min_share=parse_share(section.min_share))
            state.audits[engine.path.name] = audit
            state.engines.append(engine)
            reason = _why_not_run(backend, section, name)
            if reason is None:
                state.runnable.append(engine)
            else:
                state.stages[-1].status = "built-not-run"
                state.stages[-1].note = f"built, not run: {reason}"


def _why_not_run(backend: Backend, section: BuildSection, name: str) -> str | None:
    """Why an engine that was built cannot be run here; ``None`` if it can."""
    if section.strip_weights and name.startswith("tensorrt"):
        return "its weights were left out (strip_weights); resnet-opt refit gives them back"
    found = backend.availability()
    return None if found.can_run else found.reason


def _search(
    state: Run,
    section: BuildSection,
    name: str,
    output: Path,
    graph: Artifact,
    pool: ImageDataset,
) -> Artifact:
    """The mixed graph for an engine; what the search found lies beside it."""
    from optimizer import search
    from optimizer.engines.providers import lowering_target

    recipe = state.recipe
    assert recipe.validation is not None
    found = search.search_path(output)
    with state.stage("search", f"search layers to keep for {name}") as keep:
        made = keep(
            search.mixed(
                graph.path,
                output.with_suffix(".onnx"),
                pool,
                target=lowering_target(name, _provider(section, name)),
                result=found,
                max_drop_pp=parse_pp(recipe.validation.max_drop),
                calib_images=recipe.calibrate.calib_images,
                options=_encoding_options(recipe, section, "mixed"),
                high_precision=section.high_precision,
                cache=state.cache,
                progress=state.progress,
            )
        )
    said = read_result(found)
    assert isinstance(said, SearchResult)
    state.stages[-1].note = said.finding
    return made


def _one_engine(
    state: Run,
    section: BuildSection,
    name: str,
    precision: str,
    output: Path,
    source: Artifact,
    statistics: Artifact | None,
) -> Artifact:
    from optimizer.graphs.facts import graph_facts

    int8 = precision in {"int8", "fp8"}
    measured = int8 or precision in {"fp16", "bf16"}
    if precision == "mixed":  # a search may keep nothing, and the graph is an INT8 one then
        precision = graph_facts(source.path).precision
    return verbs.build(
        source.path,
        output,
        precision=precision,
        engine=name,
        provider=_provider(section, name),
        provider_options=section.provider_options if name == "onnxruntime" else None,
        target=section.target if name == "tensorrt-rtx" else (),
        **_own_arguments(state.recipe, section, name),
        storage_only=section.storage_only,
        limits=_limits(section),
        stats=statistics.path if statistics and measured else None,
        options=_encoding_options(state.recipe, section, precision) if int8 else None,
        high_precision=section.high_precision if int8 else None,
        cache=state.cache,
        progress=state.progress,
    )


def _own_arguments(recipe: Recipe, section: BuildSection, name: str) -> dict[str, Any]:
    """What one backend alone is given, as ``verbs.build`` takes it."""
    if name.startswith("tensorrt"):
        return section.tensorrt_arguments()
    if name == "openvino" and recipe.export.batch == "dynamic":
        measured = recipe.bench.batch if recipe.bench is not None else None
        sizes = section.fixed_batch if section.fixed_batch is not None else measured
        return {} if sizes is None else {"backend_options": {"fixed_batch": tuple(sizes)}}
    return {}


def _provider(section: BuildSection, name: str) -> str | None:
    """The section's provider, which ONNX Runtime alone among its engines has."""
    return section.provider if name == "onnxruntime" else None


def _limits(section: BuildSection) -> Limits:
    from optimizer.engines.building import Limits

    memory = parse_bytes(section.memory_limit) if section.memory_limit else None
    return Limits(seconds=parse_duration(section.build_timeout), memory_bytes=memory)


def _encoding_options(recipe: Recipe, section: BuildSection, precision: str) -> EncodingOptions:
    from optimizer.precision.int8 import EncodingOptions

    passes = recipe.calibrate
    return EncodingOptions(
        method=passes.method,
        equalize=passes.equalize,
        bias=passes.bias_correction,
        shift=passes.shift,
        keep=tuple(section.keep) if precision in {"int8", "mixed"} else (),
    )
