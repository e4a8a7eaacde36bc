"""Verifies that a saved ONNX file has the same outputs as the PyTorch model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import GraphError
from optimizer.graphs.onnx_files import checker_error, open_onnx

if TYPE_CHECKING:
    from optimizer.models import Model

__all__ = ["TOLERANCE", "verify_file"]

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest absolute reference logit (of a single output:
at least 1)."""


def verify_file(path: Path, model: Model, *, batch: int | None, input_kind: str) -> dict[str, Any]:
    """Check the file with `onnx.checker`, its dimensions, and its outputs against PyTorch's.

    A dynamic batch is run with 1 and 5 images, a static one with its size. The images are seeded
    random pixels, so that in-graph normalization receives the same data as PyTorch.

    Returns:
        The results, for the manifest.

    Raises:
        GraphError: A check fails; the message says which.
    """
    proto = open_onnx(path).proto
    complaint = checker_error(proto)
    if complaint is not None:
        raise GraphError(f"onnx.checker rejects the exported file: {complaint}")
    _check_batch_dimension(proto, batch)
    if unfolded := [n.name for n in proto.graph.node if n.op_type == "BatchNormalization"]:
        raise GraphError(f"BatchNorm was not folded: {', '.join(unfolded[:3])}")

    worst = max(_difference(path, model, n, input_kind) for n in ([batch] if batch else [1, 5]))
    if not worst <= TOLERANCE:
        raise GraphError(
            f"the exported file differs from PyTorch: outputs differ by {worst:.1e} of the largest "
            f"logit (allowed: {TOLERANCE:.0e})",
            hint="try another --opset; if that does not help, report the model",
        )
    return {
        "max_relative_difference": worst,
        "nodes": len(proto.graph.node),
        "parameters": int(sum(np.prod(t.dims) for t in proto.graph.initializer)),
        "ir_version": proto.ir_version,
    }


def _check_batch_dimension(proto: Any, batch: int | None) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        symbolic = bool(dimension.dim_param) or not dimension.HasField("dim_value")
        if batch is None and not symbolic:
            raise GraphError(f"the batch size of {value.name} was frozen at {dimension.dim_value}")
        if batch is not None and dimension.dim_value != batch:
            raise GraphError(f"the batch size of {value.name} is not {batch}")


def _difference(path: Path, model: Model, n: int, input_kind: str) -> float:
    import onnxruntime
    import torch

    size = model.preprocessing.image_size
    shape = (n, size, size, model.channels)
    pixels = np.random.default_rng(n).integers(0, 256, shape, np.uint8)
    normalized = model.preprocessing.normalize(pixels)
    with torch.inference_mode():
        reference = model.module(torch.from_numpy(normalized)).numpy()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = pixels if input_kind == "uint8-nhwc" else normalized
    (outputs,) = session.run(None, {"images": feed})
    if not np.isfinite(reference).all():
        raise GraphError(
            "the model itself outputs NaN or infinite logits",
            hint="use another checkpoint: this one cannot be exported",
        )
    # One logit may be near 0 for every image; an error far below 1 does not change its sigmoid.
    least = 1.0 if model.num_outputs == 1 else 1e-30
    return float(np.abs(outputs - reference).max() / max(np.abs(reference).max(), least))
