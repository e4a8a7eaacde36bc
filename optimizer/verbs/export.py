"""The verb ``export``: write a model as ONNX and check it against PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Artifact, Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import ExportOptions, flag, takes_options
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
            ``timm:resnet50.a1_in1k``, ``keras:ResNet50``, ``resnet50:random``. With ``with_nms``
            also a detector's graph, in any precision.
        output: The ``.onnx`` file.
        options: See below.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        CheckpointError: The weights cannot be read or do not fit.
        GraphError: The outputs of the exported file differ from PyTorch's.
        UsageError: ``with_nms`` for a classifier.
    """
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    model, output = str(model), Path(output)
    check_outputs([OutputFile(output, "graph")], [model], force=force)
    if options.with_nms and Path(model).suffix == ".onnx":
        return _with_nms(Path(model), output, options, cache=cache)
    loaded = load_model(
        model, arch=options.arch, image_size=options.image_size, weights=options.weights
    )
    if options.with_nms:
        return _exported_with_nms(loaded, output, options, cache=cache, progress=progress)
    return _result(export_onnx(loaded, output, options, cache=cache, progress=progress))


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


def _exported_with_nms(
    model: Model,
    output: Path,
    options: ExportOptions,
    *,
    cache: Cache | None,
    progress: Progress | None,
) -> ExportResult:
    """The same from a model: the head is exported and compared with PyTorch first."""
    from optimizer.exporting import export_onnx
    from optimizer.exporting.nms_outputs import append_nms

    if model.detector is None:
        raise UsageError(
            f"--with-nms is for detectors, and {model.source} is none", hint="leave it out"
        )
    if output.suffix != ".onnx":
        raise UsageError(f"{output.name} does not end in .onnx", hint=f"use -o {output.stem}.onnx")
    with tempfile.TemporaryDirectory() as folder:
        head = export_onnx(
            model, Path(folder) / "head.onnx", options, cache=cache, progress=progress
        )
        result = _result(head)
        artifact = append_nms(head.path, output, cache=cache)
    return ExportResult.of(
        artifact,
        max_relative_difference=result.max_relative_difference,
        preprocessing_assumed=result.preprocessing_assumed,
    )
