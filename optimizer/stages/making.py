"""From the recipe to what engines are built from: checkpoint, graph, images, statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer import verbs
from optimizer.artifacts import Artifact, Input, Plan, produce
from optimizer.errors import UsageError
from optimizer.stages.state import Run

if TYPE_CHECKING:
    from optimizer.data import ImageDataset

__all__ = ["Images", "export", "make_checkpoint", "open_images", "take_statistics"]


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
            settings={
                "arch": model.arch,
                "num_classes": model.num_classes,
                "source": model.source,
                "preprocessing_assumed": model.preprocessing_assumed,
            },
            inputs=[Input(role="weights", file=model.source, sha256=model.sha256)],
            preprocessing=model.preprocessing.to_dict(),
            classes=model.classes,
        )

        def write(path: Path) -> dict[str, Any]:
            write_weights(model, path)
            return {"expected_top1": model.expected_top1}

        return keep(produce(plan, output, write))


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


@dataclass(frozen=True)
class Images:
    """The images of a run, no two sets of which share one where that matters.

    Attributes:
        calibration: For statistics; ``None`` if no engine needs them.
        pool: What ``calibration`` was taken from; a search divides it anew.
        held_out: For validation; none of them is in ``pool``.
    """

    calibration: ImageDataset | None
    pool: ImageDataset | None
    held_out: ImageDataset | None


def open_images(state: Run) -> Images:
    """Open the data, and set a part of it apart for calibration if there is none of its own."""
    import numpy as np

    from optimizer.data import open_dataset, stratified_subset
    from optimizer.search import check_data, divided

    calibrate, validation = state.recipe.calibrate, state.recipe.validation
    asked = {precision for section in state.recipe.build for precision in section.precision}
    skip = validation.skip_bad_images if validation else False
    held_out = (
        open_dataset(validation.data, skip_bad_images=skip, workers=validation.workers)
        if validation
        else None
    )
    pool = calibration = None
    if asked & {"int8", "fp8", "mixed"}:
        if calibrate.calib is not None:
            pool = open_dataset(
                calibrate.calib,
                skip_bad_images=skip,
                workers=calibrate.workers,
                labelled="mixed" in asked,  # its search counts what it gets wrong
            )
        elif held_out is not None:
            # One folder for both: a part of it calibrates and is never validated on.
            count = len(held_out) // 2
            if "mixed" not in asked:
                count = min(calibrate.calib_images, count)
            chosen = stratified_subset(held_out.labels, count, calibrate.seed)
            rest = np.setdiff1d(np.arange(len(held_out)), chosen)
            pool = replace(held_out.select(chosen), workers=calibrate.workers)
            held_out = held_out.select(rest)
    if "mixed" in asked and (pool is None or held_out is None):
        raise UsageError(
            "mixed precision needs images to search on and others to judge what it finds",
            mend="--data with labelled images; --calib for those of the search",
        )
    if pool is not None and "mixed" in asked and skip:
        pool = pool.verify()  # a search reads its images several times
    if pool is not None and asked & {"int8", "fp8"}:
        count = min(calibrate.calib_images, len(pool))
        calibration = pool.select(stratified_subset(pool.labels, count, calibrate.seed))
    if calibrate.calib is not None and held_out is not None:
        seen = [] if calibration is None else [calibration]
        if "mixed" in asked and pool is not None:
            seen += divided(pool, calibrate.calib_images)
        for images in seen:
            check_data(images, held_out)
    if validation and held_out is not None and validation.limit is not None:
        held_out = held_out.select(
            stratified_subset(held_out.labels, validation.limit, calibrate.seed)
        )
    return Images(calibration, pool, held_out)


def take_statistics(
    state: Run, graph: Artifact, calibration: ImageDataset | None
) -> Artifact | None:
    """Calibrate on the images set apart for it; ``None`` if no engine needs it."""
    from optimizer.precision import calibrate

    if calibration is None:
        return None
    with state.stage("calibrate", f"calibrate on {len(calibration)} images") as keep:
        return keep(
            calibrate(
                graph.path,
                calibration,
                state.folder / "statistics.npz",
                cache=state.cache,
                progress=state.progress,
            )
        )
