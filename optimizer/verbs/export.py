"""The verb ``export``: write a model as ONNX and check it against PyTorch, or TensorFlow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Artifact, Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import (
    Architecture,
    ExportOptions,
    ForeignGraph,
    FrameworkPython,
    GraphOptions,
    flag,
    takes_options,
)
from optimizer.progress import Progress
from optimizer.verbs.outcomes import ExportResult

if TYPE_CHECKING:
    from optimizer.models import Model

__all__ = ["export"]


@takes_options(ExportOptions)
def export(
    model: str | Path,
    output: Path | str,
    options: ExportOptions,
    *,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a model to ONNX and check it against PyTorch; see `optimizer.exporting.export_onnx`.

    Args:
        model: A checkpoint, a Keras model, or a name: ``resnet50:IMAGENET1K_V2``,
            ``timm:resnet50.a1_in1k``, ``keras:ResNet50``, ``resnet50:random``. A TensorFlow
            SavedModel is converted by tf2onnx, and compared with TensorFlow. With ``with_nms`` also
            a detector's graph, in any precision.
        output: The ``.onnx`` file.
        options: See below.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        CheckpointError: The weights cannot be read or do not fit.
        GraphError: The outputs of the exported file differ from PyTorch's or TensorFlow's, or a
            SavedModel is not taken.
        MissingLibrary: A SavedModel needs TensorFlow and tf2onnx.
        UsageError: ``with_nms`` for a classifier, or options of another kind of source.
    """
    from optimizer.exporting.saved_model import is_saved_model

    output = Path(output)
    job = _Job(output, options, cache, force, progress)
    if is_saved_model(Path(model)):
        return _of_saved_model(Path(model), job)
    return _of_model(str(model), job)


@dataclass(frozen=True)
class _Job:
    output: Path
    options: ExportOptions
    cache: Cache | None
    force: bool
    progress: Progress | None


def _of_model(model: str, job: _Job) -> ExportResult:
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    options = job.options
    foreign = [
        *options.of_kind(ForeignGraph).as_given(),
        *options.of_kind(FrameworkPython).as_given(),
    ]
    _refuse(foreign, f"{model} is not a SavedModel")
    check_outputs([OutputFile(job.output, "graph")], [model], force=job.force)
    if options.with_nms and Path(model).suffix == ".onnx":
        return _with_nms(Path(model), job.output, options, cache=job.cache)
    loaded = load_model(
        model, arch=options.arch, image_size=options.image_size, weights=options.weights
    )
    if options.with_nms:
        return _exported_with_nms(loaded, job)
    artifact = export_onnx(loaded, job.output, options, cache=job.cache, progress=job.progress)
    return _result(artifact)


def _result(artifact: Artifact) -> ExportResult:
    details = artifact.manifest.details
    return ExportResult.of(
        artifact,
        max_relative_difference=details.get("max_relative_difference"),
        preprocessing_assumed=bool(details.get("preprocessing_assumed")),
    )


def _with_nms(
    graph: Path, output: Path, options: ExportOptions, *, cache: Cache | None
) -> ExportResult:
    """The exported graph of a detector, with boxes as its outputs."""
    from optimizer.exporting.nms_outputs import append_nms

    if given := [name for name in options.as_given() if name != "with_nms"]:
        raise UsageError(
            f"{flag(given[0])} is for models, and {graph.name} is a graph already",
            hint=f"leave out {flag(given[0])}, or give the checkpoint",
        )
    if output.suffix != ".onnx":
        raise UsageError(f"{output.name} does not end in .onnx", hint=f"use -o {output.stem}.onnx")
    return _result(append_nms(graph, output, cache=cache))


def _exported_with_nms(model: Model, job: _Job) -> ExportResult:
    """The same from a model: the head is exported and compared with PyTorch first."""
    from optimizer.exporting import export_onnx
    from optimizer.exporting.nms_outputs import append_nms

    output = job.output
    if model.detector is None:
        raise UsageError(
            f"--with-nms is for detectors, and {model.source} is none", hint="leave it out"
        )
    if output.suffix != ".onnx":
        raise UsageError(f"{output.name} does not end in .onnx", hint=f"use -o {output.stem}.onnx")
    with tempfile.TemporaryDirectory() as folder:
        head = export_onnx(
            model, Path(folder) / "head.onnx", job.options, cache=job.cache, progress=job.progress
        )
        result = _result(head)
        artifact = append_nms(head.path, output, cache=job.cache)
    return ExportResult.of(
        artifact,
        max_relative_difference=result.max_relative_difference,
        preprocessing_assumed=result.preprocessing_assumed,
    )


def _of_saved_model(folder: Path, job: _Job) -> ExportResult:
    """Convert a SavedModel with TensorFlow, and import what tf2onnx writes."""
    from optimizer.artifacts import scratch_folder
    from optimizer.exporting.saved_model import convert_saved_model
    from optimizer.models.checkpoint import CARD_SUFFIX
    from optimizer.precision.foreign import float_graph

    options = job.options
    given = {*options.of_kind(Architecture).as_given(), *options.of_kind(GraphOptions).as_given()}
    given |= {"with_nms"} if options.with_nms else set()
    _refuse(sorted(given), f"{folder} is a SavedModel")
    foreign = options.of_kind(ForeignGraph)
    folder = folder.resolve()
    card = folder.with_name(folder.name + CARD_SUFFIX)
    if foreign.preprocessing_from is None and card.is_file():
        foreign = foreign.model_copy(update={"preprocessing_from": str(card)})
    read = [folder, foreign.preprocessing_from]
    check_outputs([OutputFile(job.output, "graph")], read, force=job.force)
    with scratch_folder("saved_model") as scratch:
        converted = convert_saved_model(
            folder,
            scratch / f"{folder.name}.onnx",
            foreign,
            interpreter=options.framework_python,
            cache=job.cache,
            progress=job.progress,
        )
        artifact = float_graph(
            converted.path, job.output, foreign, cache=job.cache, progress=job.progress
        )
    difference = converted.manifest.details["difference"]
    return ExportResult.of(
        artifact,
        max_relative_difference=None if difference is None else float(difference),
        compared_with="TensorFlow",
    )


def _refuse(given: Sequence[str], reason: str) -> None:
    if given:
        flags = ", ".join(map(flag, given))
        raise UsageError(f"{flags}: {reason}", hint=f"leave out {flags}")
