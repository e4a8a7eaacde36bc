"""The stages of the main job: each takes what the stages before it made and leaves an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer import verbs
from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.errors import BuildError, EnvironmentFault, UnsupportedPrecision
from optimizer.progress import Progress
from optimizer.recipe import BuildSection, Recipe
from optimizer.results import (
    Audit,
    BenchResult,
    StageRecord,
    ValidateResult,
    read_result,
    write_result,
)
from optimizer.units import parse_bytes, parse_duration, parse_pp, parse_share

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.models import Model

__all__ = [
    "Run",
    "build_engines",
    "export",
    "make_checkpoint",
    "measure_engines",
    "open_images",
    "take_statistics",
    "validate_engines",
]

_LIBRARIES = (
    "torch",
    "torchvision",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "numpy",
    "scipy",
)


@dataclass
class Run:
    """What a run has made so far.

    Attributes:
        recipe: What to do.
        folder: Where everything goes.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.
        stages: One record a stage.
        audits: By engine file name.
        engines: Every engine that was built.
        runnable: Those of them that run on this machine.
    """

    recipe: Recipe
    folder: Path
    cache: Cache | None
    progress: Progress
    stages: list[StageRecord] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)
    engines: list[Artifact] = field(default_factory=list)
    runnable: list[Artifact] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, label: str) -> Iterator[Callable[[Artifact], Artifact]]:
        """Record one stage; the block hands its artifact to the yielded function."""
        started = time.perf_counter()
        made: list[Artifact] = []

        def keep(artifact: Artifact) -> Artifact:
            made.append(artifact)
            return artifact

        yield keep
        artifact = made[0] if made else None
        self.stages.append(
            StageRecord(
                name=name,
                label=label,
                file=str(artifact.path.relative_to(self.folder)) if artifact else None,
                cached=artifact.cached if artifact else False,
                seconds=time.perf_counter() - started,
                manifest=_brief(artifact) if artifact else None,
            )
        )


def make_checkpoint(state: Run) -> Artifact:
    """Train the model, or load it, into ``model.safetensors``: the reference of all that follows."""
    from optimizer.models import load_model, write_weights

    recipe, output = state.recipe, state.folder / "model.safetensors"
    if recipe.train is not None:
        with state.stage("train", f"train {recipe.train.arch} on {recipe.train.data}") as keep:
            return keep(
                verbs.train(
                    output, **recipe.train.model_dump(), cache=state.cache, progress=state.progress
                )
            )
    assert recipe.model is not None
    with state.stage("load", f"load {recipe.model}") as keep:
        model = load_model(recipe.model, arch=recipe.arch, image_size=recipe.export.image_size)
        plan = Plan(
            kind="checkpoint",
            settings={"arch": model.arch, "num_classes": model.num_classes, "source": model.source},
            inputs=[Input(role="weights", file=model.source, sha256=model.sha256)],
            preprocessing=model.preprocessing.to_dict(),
            classes=model.classes,
        )

        def write(path: Path) -> dict[str, Any]:
            write_weights(model, path)
            return {
                "preprocessing_assumed": model.preprocessing_assumed,
                "expected_top1": model.expected_top1,
            }

        return keep(produce(plan, output, write))


def _model(checkpoint: Artifact) -> Model:
    from optimizer.models import load_model

    return load_model(str(checkpoint.path))


def export(state: Run, checkpoint: Artifact) -> Artifact:
    """Export the checkpoint to ``model.onnx``, checked against PyTorch."""
    section = state.recipe.export
    with state.stage("export", "export to ONNX") as keep:
        return keep(
            verbs.export(
                str(checkpoint.path),
                state.folder / "model.onnx",
                batch=None if section.batch == "dynamic" else section.batch,
                input_kind=section.input,
                opset=section.opset,
                cache=state.cache,
                progress=state.progress,
            )
        )


def open_images(state: Run) -> tuple[ImageDataset | None, ImageDataset | None]:
    """Calibration and validation images; never the same ones."""
    import numpy as np

    from optimizer.data import open_dataset, stratified_subset

    calibrate, validation = state.recipe.calibrate, state.recipe.validation
    needs_calibration = any(
        {"int8", "fp8"} & set(section.precision) for section in state.recipe.build
    )
    skip = validation.skip_bad_images if validation else False
    held_out = open_dataset(validation.data, skip_bad_images=skip) if validation else None
    calibration = None
    if needs_calibration and calibrate.calib is not None:
        calibration = open_dataset(
            calibrate.calib, limit=calibrate.calib_images, seed=calibrate.seed, skip_bad_images=skip
        )
    elif needs_calibration and held_out is not None:
        # One folder for both: a part of it calibrates and is never validated on.
        count = min(calibrate.calib_images, len(held_out) // 2)
        chosen = stratified_subset(held_out.labels, count, calibrate.seed)
        rest = np.setdiff1d(np.arange(len(held_out)), chosen)
        calibration, held_out = held_out.select(chosen), held_out.select(rest)
    if validation and held_out is not None and validation.limit is not None:
        held_out = held_out.select(
            stratified_subset(held_out.labels, validation.limit, calibrate.seed)
        )
    return calibration, held_out


def take_statistics(
    state: Run, graph: Artifact, calibration: ImageDataset | None
) -> Artifact | None:
    """Calibrate on the images set apart for it; ``None`` if no engine needs it."""
    from optimizer.engines.onnxruntime import tapped
    from optimizer.precision import calibrate

    if calibration is None:
        return None
    with state.stage("calibrate", f"calibrate on {len(calibration)} images") as keep:
        return keep(
            calibrate(
                graph.path,
                calibration,
                state.folder / "statistics.npz",
                tapped,
                cache=state.cache,
                progress=state.progress,
            )
        )


def build_engines(
    state: Run,
    section: BuildSection,
    checkpoint: Artifact,
    graph: Artifact,
    statistics: Artifact | None,
) -> None:
    """Build and audit every engine of a section; what cannot be built is recorded, not raised."""
    from optimizer.engines import get_backend
    from optimizer.engines.choice import choose_engine

    for asked in section.engine:
        for precision in section.precision:
            started = time.perf_counter()
            label = f"{asked} {precision}"
            try:
                name = choose_engine(precision) if asked == "auto" else asked
                backend = get_backend(name)
                label = f"{name} {precision}"
                output = state.folder / "engines" / f"{name}-{precision}{backend.suffix}"
                with state.stage("build", label) as keep:
                    engine = keep(
                        _one_engine(
                            state, section, name, precision, output, checkpoint, graph, statistics
                        )
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
            found = backend.availability()
            if found.can_run:
                state.runnable.append(engine)
            else:
                state.stages[-1].status = "built-not-run"
                state.stages[-1].note = f"built, not run: {found.reason}"


def _one_engine(
    state: Run,
    section: BuildSection,
    name: str,
    precision: str,
    output: Path,
    checkpoint: Artifact,
    graph: Artifact,
    statistics: Artifact | None,
) -> Artifact:
    return verbs.build(
        checkpoint.path if name == "torch" else graph.path,
        output,
        precision=precision,
        engine=name,
        target=section.target if name == "tensorrt-rtx" else (),
        **(section.tensorrt_arguments() if name.startswith("tensorrt") else {}),
        storage_only=section.storage_only,
        limits=_limits(section),
        stats=statistics.path if statistics and precision in {"int8", "fp8"} else None,
        options=_encoding_options(state.recipe),
        cache=state.cache,
        progress=state.progress,
    )


def _limits(section: BuildSection) -> Any:
    from optimizer.engines.building import Limits

    memory = parse_bytes(section.memory_limit) if section.memory_limit else None
    return Limits(seconds=parse_duration(section.build_timeout), memory_bytes=memory)


def _encoding_options(recipe: Recipe) -> Any:
    from optimizer.precision.int8 import EncodingOptions

    return EncodingOptions(method=recipe.calibrate.method)


def validate_engines(
    state: Run, checkpoint: Artifact, graph: Artifact, held_out: ImageDataset | None
) -> ValidateResult | None:
    """Hold every engine against the reference: ``validate.json`` and ``predictions.npz``."""
    from optimizer.evaluation import Chain, validate
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
            _model(checkpoint),
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


def _fingerprint() -> dict[str, Any]:
    from optimizer.environment import fingerprint

    return fingerprint()


def _brief(artifact: Artifact) -> dict[str, Any]:
    """A manifest for the report: without the layers and class names, which have their own files."""
    manifest = artifact.manifest.model_dump(mode="json")
    manifest["details"] = {k: v for k, v in manifest["details"].items() if k != "layers"}
    manifest["classes"] = len(manifest["classes"] or ()) or None
    manifest["engine_bytes"] = artifact.path.stat().st_size
    return manifest
