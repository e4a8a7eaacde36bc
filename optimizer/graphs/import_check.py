"""Compares an imported graph with its source on images, before anything else is done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import GraphError
from optimizer.graphs.source_ends import SQUARES, SourceGraph
from optimizer.graphs.taps import chunks, unoptimized_session
from optimizer.graphs.widening import float_types, widen

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.data import Preprocessing
    from optimizer.graphs.import_pass import ImportedGraph

__all__ = ["check_import", "images_for", "runnable", "source_runner"]

Array = NDArray[Any]
TOLERANCE = 1e-3
"""Of the largest score. Folding a BatchNorm changes the last digits: about 1e-6."""
HALF_TOLERANCE = 2e-2
"""For FP16 and BF16 files, where ONNX Runtime rounds some of the tensors."""
_IMAGES = 8
_ANY_SIZE = 224


def runnable(source: SourceGraph) -> Any:
    """A source as an `onnx.ModelProto` that ONNX Runtime executes on a CPU.

    There is no FP64 convolution for a CPU: FP64 tensors are narrowed to FP32.
    """
    import onnx

    if "fp64" not in float_types(source.proto):
        return source.proto
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    widen(proto, source.path.name)
    return proto


def source_runner(source: SourceGraph) -> Callable[[Array], Array]:
    """A function that executes a source as written: a batch of any size to N x classes float32.

    Raises:
        GraphError: ONNX Runtime cannot execute the source.
    """
    try:
        session = unoptimized_session(runnable(source).SerializeToString())
    except Exception as error:
        raise _cannot_run(source, error) from error
    return _in_batches(session)


def _cannot_run(source: SourceGraph, error: Exception) -> GraphError:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return GraphError(
        f"ONNX Runtime cannot execute {source.path.name}: {line}",
        hint="export it with standard ONNX operators",
    )


def _squared(source: SourceGraph) -> bool:
    return any(change.rule.startswith(SQUARES) for change in source.changes)


def _only_that_size(source: SourceGraph) -> GraphError:
    change = next(c.rule for c in source.changes if c.rule.startswith(SQUARES))
    return GraphError(
        f"{source.path.name} does not compute on squares ({change}): its last layers fit one size only",
        hint="export the network again, from where it was trained, with global average pooling",
    )


def _in_batches(session: Any) -> Callable[[Array], Array]:
    value = session.get_inputs()[0]
    fixed = value.shape[0] if isinstance(value.shape[0], int) else None

    def run(batch: Array) -> Array:
        if fixed is None:
            return np.asarray(session.run(None, {value.name: batch})[0], np.float32)
        parts = [
            np.asarray(session.run(None, {value.name: chunk})[0], np.float32)[:count]
            for chunk, count in chunks(batch, fixed)
        ]
        return np.concatenate(parts)

    return run


def _scores(source: SourceGraph, images: Array) -> Array:
    """What the source computes: a row per image."""
    try:
        scores = source_runner(source)(images)
    except GraphError as error:
        if _squared(source):
            raise _only_that_size(source) from error
        raise
    if len(scores) == len(images):
        return scores
    if _squared(source):
        raise _only_that_size(source)
    raise GraphError(
        f"{source.path.name} gives {len(scores)} rows of scores for {len(images)} images",
        hint="export it with a dynamic batch size",
    )


def images_for(source: SourceGraph, preprocessing: Preprocessing | None) -> Array:
    """Images in a source's input format: the bundled digits, or noise where they do not fit.

    Args:
        source: The source.
        preprocessing: Of its images; ``None`` if unknown.
    """
    from optimizer.data import Preprocessing, open_dataset

    dims = source.proto.graph.input[0].type.tensor_type.shape.dim
    shape = [d.dim_value or None for d in dims]
    pixels = source.proto.graph.input[0].type.tensor_type.elem_type == 2  # TensorProto.UINT8
    channels, height, width = (shape[3], *shape[1:3]) if pixels else shape[1:]
    sides = {side for side in (height, width) if side is not None}
    if channels not in (None, 3) or len(sides) > 1:
        size = [_IMAGES, channels or 3, height or _ANY_SIZE, width or _ANY_SIZE]
        return np.random.default_rng(0).normal(size=size).astype(np.float32)
    side = next(iter(sides), preprocessing.image_size if preprocessing else _ANY_SIZE)
    known = (preprocessing or Preprocessing.imagenet()).with_image_size(side)
    dataset = open_dataset("digits:test", limit=_IMAGES)
    (batch,) = dataset.batches(_IMAGES, known, as_uint8=pixels)
    return batch.images


def check_import(source: SourceGraph, imported: ImportedGraph, images: Array) -> float:
    """Compare the outputs of source and imported graph.

    Returns:
        The largest difference of a score, relative to the largest score.

    Raises:
        GraphError: They differ, or one cannot be executed.
    """
    import onnx_ir as ir

    expected = _scores(source, images)
    model: ir.Model = imported.model
    actual = _in_batches(unoptimized_session(ir.to_proto(model).SerializeToString()))(images)
    if not np.isfinite(expected).all():
        raise GraphError(
            f"{source.path.name} gives NaN or infinite scores",
            hint="check the file and its preprocessing",
        )
    largest = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
    difference = float(np.abs(expected - actual).max(initial=0.0)) / largest
    half = float_types(source.proto).keys() & {"fp16", "bf16"}
    if not difference <= (HALF_TOLERANCE if half else TOLERANCE):
        raise GraphError(
            f"{source.path.name} gives other scores after importing: they differ by {difference:.2g} of "
            "the largest score",
            hint="this is a fault of resnet-opt: please report it with the file",
        )
    return difference
