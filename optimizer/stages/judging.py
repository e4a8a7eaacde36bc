"""What the engines are worth: accuracy against the reference, speed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer import verbs
from optimizer.artifacts import Artifact, Input, Plan, library_versions, produce
from optimizer.results import (
    BenchResult,
    LatencyBound,
    ValidateResult,
    read_result,
    write_result,
)
from optimizer.stages.state import Run
from optimizer.units import parse_duration, parse_pp, parse_share

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.recipe import BenchSection

__all__ = ["measure_engines", "validate_engines"]

_LIBRARIES = (
    "torch",
    "torchvision",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "numpy",
    "scipy",
)


def validate_engines(
    state: Run, checkpoint: Artifact, graph: Artifact, held_out: ImageDataset | None
) -> ValidateResult | None:
    """Hold every engine against the reference: ``validate.json`` and ``predictions.npz``."""
    from optimizer.evaluation import Chain, validate
    from optimizer.models import load_model
    from optimizer.results import Gates

    section = state.recipe.validation
    if section is None or held_out is None:
        return None
    gates = Gates(
        max_drop_pp=parse_pp(section.max_drop),
        max_flips=parse_share(section.max_flips) if section.max_flips else None,
    )
    plan = Plan(
        kind="validate",
        settings={"gates": gates.model_dump(), "batch": section.batch},
        inputs=[
            checkpoint.as_input("reference"),
            graph.as_input("model"),
            *(engine.as_input("engine") for engine in state.engines),
            Input(role="data", file=held_out.name, sha256=held_out.sha256),
        ],
        libraries=library_versions(*_LIBRARIES),
        device=_fingerprint(),
    )

    def write(path: Path) -> dict[str, Any]:
        chains = [Chain.of(engine.path, model=graph.path) for engine in state.engines]
        result = validate(
            chains,
            load_model(str(checkpoint.path)),
            held_out,
            gates,
            batch=section.batch,
            predictions=state.folder / "predictions.npz",
            progress=state.progress,
        )
        result = result.model_copy(update={"audits": {**result.audits, **state.audits}})
        write_result(result, path)
        return {"verdict": result.verdict}

    with state.stage("validate", f"validate on {len(held_out)} images") as keep:
        artifact = keep(produce(plan, state.folder / "validate.json", write))
    result = read_result(artifact.path)
    assert isinstance(result, ValidateResult)
    return result


def measure_engines(state: Run, checkpoint: Artifact) -> BenchResult | None:
    """Measure every engine that runs here beside PyTorch: ``bench.json`` and ``raw/``."""
    section = state.recipe.bench
    if section is None or not state.runnable:
        return None
    plan = Plan(
        kind="bench",
        settings=section.model_dump(mode="json"),
        inputs=[checkpoint.as_input("baseline"), *(e.as_input("engine") for e in state.runnable)],
        libraries=library_versions(*_LIBRARIES),
        device=_fingerprint(),
    )

    def write(path: Path) -> dict[str, Any]:
        result = verbs.bench(
            [checkpoint.path, *(engine.path for engine in state.runnable)],
            batch=section.batch,
            threads=section.threads,
            streams=section.streams,
            starts=section.starts,
            max_latency=_bound(section),
            scenario=section.scenario,
            duration_s=parse_duration(section.duration),
            min_effect=parse_share(section.min_effect),
            seed=section.seed,
            raw_dir=state.folder / "raw",
            progress=state.progress,
        )
        write_result(result, path)
        return {"verdict": result.verdict}

    with state.stage("bench", f"measure {len(state.runnable) + 1} engines") as keep:
        artifact = keep(produce(plan, state.folder / "bench.json", write))
    result = read_result(artifact.path)
    assert isinstance(result, BenchResult)
    return result


def _bound(section: BenchSection) -> LatencyBound | None:
    if section.max_latency is None:
        return None
    return LatencyBound(
        percentile=section.latency_percentile,
        max_latency_ms=1e3 * parse_duration(section.max_latency),
    )


def _fingerprint() -> dict[str, Any]:
    from optimizer.environment import fingerprint

    return fingerprint()
