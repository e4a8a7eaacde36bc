"""`export_onnx`: exports a PyTorch model to a verified ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.errors import UsageError
from optimizer.graphs.metadata import write_metadata
from optimizer.graphs.onnx_files import write_graph
from optimizer.options import GraphOptions, takes_options
from optimizer.progress import Progress, Silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.models import Model

__all__ = ["export_onnx"]


@takes_options(GraphOptions)
def export_onnx(
    model: Model,
    output: Path,
    options: GraphOptions,
    *,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Export a model to one ONNX file and verify it against PyTorch.

    BatchNorm is folded into the convolutions, nodes and initializers are named after their PyTorch
    module, and preprocessing and class names are stored in ``metadata_props``. There is one input
    ``images`` and one output ``logits`` (N x classes float32). A detector's output is ``head``
    (N x anchors x values float32, see `DetectorSpec`, which is stored too); its layers on several
    levels are copied, one per level. The saved file is checked by
    `onnx.checker` and its outputs in ONNX Runtime are compared with PyTorch's. A file that fails is
    not kept.

    Args:
        model: The model; its preprocessing determines the image size.
        output: Path of the ``.onnx`` file.
        options: Batch, opset and input: ``float32-nchw`` (N x 3 x H x W, normalized) or
            ``uint8-nhwc`` (N x H x W x 3 pixels; the graph transposes and normalizes them, before
            any padding).
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        UsageError: An option is out of range.
        GraphError: The exported file fails verification.
    """
    progress = progress or Silent()
    batch, input_kind, opset = options.batch, options.input, options.opset
    if output.suffix != ".onnx":
        raise UsageError(f"{output.name} does not end in .onnx", hint=f"use -o {output.stem}.onnx")

    plan = Plan(
        kind="graph",
        settings={
            "precision": "fp32",
            "arch": model.arch,
            "batch": batch,
            "image_size": model.preprocessing.image_size,
            "input": input_kind,
            "opset": opset,
            "exporter": "torch.onnx dynamo",
            **({} if model.pruned_from is None else {"pruned_from": model.pruned_from}),
        },
        inputs=[Input(role="checkpoint", file=Path(model.source).name, sha256=model.sha256)],
        libraries=library_versions("torch", "torchvision", "onnx", "onnxscript", "onnx-ir"),
        preprocessing={**model.preprocessing.to_dict(), "sha256": model.preprocessing.sha256},
        classes=model.classes,
    )

    def write(path: Path) -> dict[str, Any]:
        from optimizer.exporting.verify import verify_file

        progress.start("export", total=3)
        graph = _trace(model, batch=batch, opset=opset)
        progress.advance(note="rewriting")
        _rewrite(graph, model, batch=batch, input_kind=input_kind)
        write_graph(graph, path)
        progress.advance(note="checking against PyTorch")
        checked = verify_file(path, model, batch=batch, input_kind=input_kind)
        progress.advance()
        progress.finish(f"max |Δ| {checked['max_relative_difference']:.1e} of the largest logit")
        notes = {"notes": list(model.remarks)} if model.remarks else {}
        return {**checked, "preprocessing_assumed": model.preprocessing_assumed, **notes}

    return produce(plan, output, write, cache=cache)


def _trace(model: Model, *, batch: int | None, opset: int) -> ir.Model:
    import torch

    size = model.preprocessing.image_size
    # torch.export silently turns an example dimension of 0 or 1 into a constant.
    example = torch.zeros(batch if batch is not None else 2, model.channels, size, size)
    shapes = None if batch is not None else ({0: torch.export.Dim("batch")},)
    module, output = model.module, "logits"
    if model.detector is not None:
        from optimizer.models.detectors import HeadOnly, PerLevelHeads

        assert isinstance(module, HeadOnly)
        module, output = PerLevelHeads(module, len(model.detector.strides)).eval(), "head"
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=shapes,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    exported: ir.Model = program.model
    return exported


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings and prints (deprecations, tracing notes)."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _rewrite(graph: ir.Model, model: Model, *, batch: int | None, input_kind: str) -> None:
    from optimizer.exporting import rewrite
    from optimizer.exporting.image_input import use_uint8_input

    rewrite.use_global_average_pool(graph)
    rewrite.use_constant_shapes(graph)
    rewrite.use_scales_of_resizes(graph)
    rewrite.drop_unused_constants(graph)
    rewrite.name_by_module(graph)
    rewrite.add_missing_biases(graph)
    rewrite.name_biases(graph)
    rewrite.drop_exporter_metadata(graph)
    if input_kind == "uint8-nhwc":
        use_uint8_input(graph, model.preprocessing)
    graph.producer_name, graph.producer_version = "resnet-opt", None
    graph.graph.name = model.arch
    write_metadata(
        graph,
        arch=model.arch,
        input=input_kind,
        precision="fp32",
        checkpoint_sha256=model.sha256,
        preprocessing=model.preprocessing.to_dict(),
        classes=list(model.classes or ()),
        batch="dynamic" if batch is None else str(batch),
        detector=None if model.detector is None else model.detector.to_dict(),
        widths=None if model.narrow is None else model.narrow.to_dict(),
        pruned_from=model.pruned_from,
    )
