"""The verb ``export``: write a model as ONNX and check it against PyTorch."""

from __future__ import annotations

from pathlib import Path

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.options import ExportOptions, takes_options
from optimizer.progress import Progress
from optimizer.verbs.outcomes import ExportResult

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
            ``timm:resnet50.a1_in1k``, ``keras:ResNet50``, ``resnet50:random``.
        output: The ``.onnx`` file.
        options: See below.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        CheckpointError: The weights cannot be read or do not fit.
        GraphError: The outputs of the exported file differ from PyTorch's.
    """
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    model, output = str(model), Path(output)
    check_outputs([OutputFile(output, "graph")], [model], force=force)
    artifact = export_onnx(
        load_model(
            model, arch=options.arch, image_size=options.image_size, weights=options.weights
        ),
        output,
        options,
        cache=cache,
        progress=progress,
    )
    details = artifact.manifest.details
    return ExportResult.of(
        artifact,
        max_relative_difference=details["max_relative_difference"],
        preprocessing_assumed=bool(details.get("preprocessing_assumed")),
    )
