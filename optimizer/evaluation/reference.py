"""The reference that every hop is compared with: a PyTorch model or the user's FP32 ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import digest, library_versions
from optimizer.data import Preprocessing
from optimizer.errors import GraphError
from optimizer.models import DetectorSpec, Model
from optimizer.models.native import NativeModel
from optimizer.options import ForeignGraph
from optimizer.tasks import Task, task_of

__all__ = ["Reference", "open_reference"]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An opened reference.

    Attributes:
        name: Name for results and messages.
        executor: Description of what computes it.
        run: Maps a batch (N x 3 x H x W float32, or uint8 where `takes_uint8`) to N x classes
            float32, or N x anchors x values for a detector.
        preprocessing: The preprocessing of its input images.
        classes: Class names in the order of the outputs, or ``None``.
        num_classes: Number of classes; 2 for one output, a sigmoid.
        sha256: Digest of the weights or of the file.
        checkpoint: Digest of the checkpoint's weights; ``None`` if the file does not state it.
        takes_uint8: Whether the input is N x H x W x 3 uint8.
        expected_top1: Published or trained top-1, a fraction of one; ``None`` if unknown.
        preprocessing_assumed: Whether ImageNet preprocessing was assumed for lack of metadata.
        probabilities: Whether the outputs are probabilities, not logits.
        source: The model or file it was opened from.
        task: Reads and judges its outputs.
        detector: How its outputs become boxes; ``None`` for a classifier.
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
    probabilities: bool = False
    source: Model | Path
    task: Task
    detector: DetectorSpec | None = None


def open_reference(
    source: Model | NativeModel | Path,
    foreign: ForeignGraph | None = None,
    stated: tuple[str, dict[str, Any]] | None = None,
) -> Reference:
    """Open a model, or an FP32 ONNX file of any exporter.

    Args:
        source: The model, perhaps with the framework that it comes from; or the file.
        foreign: What the file does not say itself.
        stated: An engine or graph made from the file, by name, and the preprocessing that it states:
            used if nothing else states it.

    Raises:
        GraphError: The ONNX file is not a classifier, has INT8 layers, or its preprocessing is not
            known.
    """
    if isinstance(source, Model):
        return _from_model(source)
    if isinstance(source, NativeModel):
        return _from_native(source)
    return _from_graph(source, foreign or ForeignGraph(), stated)


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
        task=task_of(model.detector, model.preprocessing),
        detector=model.detector,
    )


def _from_native(native: NativeModel) -> Reference:
    ours = _from_model(native.model)
    if native.run is None:
        return replace(ours, executor=f"{ours.executor} of {native.executor}")
    return replace(ours, executor=native.executor, run=native.run, takes_uint8=native.takes_uint8)


_FLOATS = ("fp32", "fp16", "bf16", "fp64")


def _from_graph(
    path: Path, foreign: ForeignGraph, stated: tuple[str, dict[str, Any]] | None
) -> Reference:
    from optimizer.graphs.facts import facts_of
    from optimizer.graphs.import_check import source_runner
    from optimizer.graphs.source_ends import open_source
    from optimizer.precision.source_description import HOW_TO_STATE, describe_source

    source = open_source(path, foreign)
    facts = facts_of(source)
    converted = facts.metadata.precision != "fp32"
    if converted or facts.precision not in _FLOATS:
        raise GraphError(
            f"{path.name} is {facts.precision.upper()}, but a reference must be FP32",
            hint="give the FP32 graph or the checkpoint that it was made from",
        )
    description = describe_source(path, foreign, facts.image_size)
    preprocessing, origin = description.metadata.preprocessing, description.origin
    if preprocessing is None and stated is not None:
        origin, preprocessing = stated
    if preprocessing is None:
        raise GraphError(
            f"{path.name} does not state its preprocessing",
            hint=HOW_TO_STATE.format(name=path.name),
        )
    classes = description.metadata.classes
    images = Preprocessing.from_dict(preprocessing)
    detector = None if facts.detector is None else DetectorSpec.from_dict(facts.detector)
    outputs = max(2, facts.output_shape[1] or len(classes or ()))
    taken = f"; preprocessing from {origin}" if origin is not None else ""
    taken += "" if foreign.output_name is None else f", output {foreign.output_name}"
    wide = "" if facts.precision == "fp32" else f", {facts.precision.upper()} computed in FP32"
    return Reference(
        name=path.name,
        executor=f"ONNX Runtime {_onnxruntime_version()}, optimizations off{wide}{taken}",
        run=source_runner(source),
        preprocessing=images,
        classes=None if classes is None else tuple(classes),
        num_classes=outputs if detector is None else detector.num_classes,
        sha256=digest(path),
        checkpoint=facts.metadata.get("checkpoint_sha256"),
        takes_uint8=facts.input_dtype == "uint8",
        probabilities=facts.probabilities,
        source=path,
        task=task_of(detector, images),
        detector=detector,
    )


def _onnxruntime_version() -> str:
    versions = library_versions("onnxruntime-gpu", "onnxruntime")
    return next(iter(versions.values()), "unknown")
