"""The reference that every hop is compared with: a PyTorch model or the user's FP32 ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import digest, library_versions
from optimizer.data import Preprocessing
from optimizer.errors import GraphError
from optimizer.models import Model
from optimizer.tasks import Classification, Task

if TYPE_CHECKING:
    from optimizer.engines.protocol import Session

__all__ = ["Reference", "open_reference"]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An opened reference.

    Attributes:
        name: Name for results and messages.
        executor: Description of what computes it.
        run: Maps a batch (N x 3 x H x W float32, or uint8 where `takes_uint8`) to N x classes
            float32.
        preprocessing: The preprocessing of its input images.
        classes: Class names in the order of the outputs, or ``None``.
        num_classes: Number of classes; 2 for one output, a sigmoid.
        sha256: Digest of the weights or of the file.
        checkpoint: Digest of the checkpoint's weights; ``None`` if the file does not state it.
        takes_uint8: Whether the input is N x H x W x 3 uint8.
        expected_top1: Published or trained top-1, a fraction of one; ``None`` if unknown.
        preprocessing_assumed: Whether ImageNet preprocessing was assumed for lack of metadata.
        source: The model or file it was opened from.
        task: Reads and judges its outputs.
    """

    name: str
    executor: str
    run: Callable[[Array], Array]
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    num_classes: int
    sha256: str
    checkpoint: str | None
    takes_uint8: bool = False
    expected_top1: float | None = None
    preprocessing_assumed: bool = False
    source: Model | Path
    task: Task = field(default_factory=Classification)


def open_reference(source: Model | Path) -> Reference:
    """Open a model, or an FP32 ONNX file with preprocessing metadata.

    Raises:
        GraphError: The ONNX file is not a classifier, is not FP32, or has no preprocessing
            metadata.
    """
    return _from_model(source) if isinstance(source, Model) else _from_graph(source)


def _from_model(model: Model) -> Reference:
    import torch

    def run(batch: Array) -> Array:
        with torch.inference_mode():
            outputs: Array = model.module(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
        return outputs

    return Reference(
        name=model.source,
        executor=f"PyTorch {library_versions('torch')['torch']}, eager FP32",
        run=run,
        preprocessing=model.preprocessing,
        classes=model.classes,
        num_classes=model.num_classes,
        sha256=model.sha256,
        checkpoint=model.sha256,
        expected_top1=getattr(model, "expected_top1", None),
        preprocessing_assumed=model.preprocessing_assumed,
        source=model,
    )


def _from_graph(path: Path) -> Reference:
    from optimizer.engines.onnxruntime import as_written
    from optimizer.graphs.facts import graph_facts

    facts = graph_facts(path)
    if facts.precision != "fp32":
        raise GraphError(
            f"{path.name} is {facts.precision.upper()}, but a reference must be FP32",
            hint="give the FP32 graph or the checkpoint that it was made from",
        )
    if facts.preprocessing is None:
        raise GraphError(
            f"{path.name} does not state its preprocessing",
            hint="export it with resnet-opt export, which writes the preprocessing into the file",
        )
    session: Session = as_written(path)
    classes = facts.classes
    return Reference(
        name=path.name,
        executor=f"ONNX Runtime {_onnxruntime_version()}, optimizations off",
        run=session.run,
        preprocessing=Preprocessing.from_dict(facts.preprocessing),
        classes=None if classes is None else tuple(classes),
        num_classes=max(2, facts.output_shape[1] or len(classes or ())),
        sha256=digest(path),
        checkpoint=facts.metadata.get("checkpoint_sha256"),
        takes_uint8=facts.input_dtype == "uint8",
        source=path,
    )


def _onnxruntime_version() -> str:
    versions = library_versions("onnxruntime-gpu", "onnxruntime")
    return next(iter(versions.values()), "unknown")
