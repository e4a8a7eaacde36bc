"""TensorFlow's SavedModels as ONNX, by tf2onnx in a process of its own.

TensorFlow's own outputs for seeded noise are compared with those of the ONNX file as written, so that
what the importing pass starts from is what TensorFlow computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts import Artifact, Cache, Input, Plan, digest, produce
from optimizer.errors import GraphError, MissingLibrary
from optimizer.graphs.import_check import TOLERANCE, source_runner
from optimizer.graphs.source_ends import SourceGraph, open_source
from optimizer.options import ForeignGraph
from optimizer.processes import ChildFailed, Limits, call
from optimizer.progress import Progress, Silent

__all__ = ["convert_saved_model", "is_saved_model"]

_OPSET = 17
_IMAGES = 2
_ANY_SIZE = 224
_LIMITS = Limits(seconds=3600.0)
_HOW_TO_INSTALL = (
    "install it (pip install 'resnet-opt[tensorflow]'), or name an interpreter that has TensorFlow and "
    "tf2onnx: --framework-python"
)
_BY_HAND = (
    "if you trust it, write the ONNX file yourself and pass that: "
    "python -m tf2onnx.convert --saved-model {} --output model.onnx"
)


def is_saved_model(path: Path) -> bool:
    """Whether a path is a folder that TensorFlow saved a model in."""
    return (path / "saved_model.pb").is_file()


def convert_saved_model(
    folder: Path,
    output: Path,
    options: ForeignGraph,
    *,
    interpreter: Path | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write a SavedModel as ONNX, as tf2onnx does it; the importing pass makes a graph of it.

    Args:
        folder: The SavedModel, with a signature ``serving_default`` that takes images.
        output: The ``.onnx`` file.
        options: Which output has the scores; ``crop`` is the size for a model that takes any.
        interpreter: An interpreter with TensorFlow and tf2onnx; ``None`` for this one.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        MissingLibrary: TensorFlow or tf2onnx is not installed.
        GraphError: The SavedModel is not taken, or its ONNX file computes something else.
    """
    size = options.crop or _ANY_SIZE
    plan = Plan(
        kind="graph",
        settings={"converter": "tf2onnx", "opset": _OPSET, "output_name": options.output_name},
        inputs=[Input(role="source", file=folder.name, sha256=_folder_digest(folder))],
    )

    def write(path: Path) -> Mapping[str, Any]:
        progress_ = progress or Silent()
        progress_.start(f"convert {folder.name} with TensorFlow")
        facts = _converted(folder, path, size, interpreter)
        difference = _difference(open_source(path, options), facts, size)
        if difference is not None and not difference <= TOLERANCE:
            raise GraphError(
                f"tf2onnx's ONNX file of {folder} differs from TensorFlow by {difference:.2g} of the "
                "largest score",
                hint="convert it with another version of tf2onnx",
            )
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        progress_.finish(versions)
        return {"difference": difference, "versions": facts["versions"]}

    return produce(plan, output, write, cache=cache)


def _converted(folder: Path, path: Path, size: int, interpreter: Path | None) -> dict[str, Any]:
    name = "this interpreter" if interpreter is None else str(interpreter)
    try:
        facts: dict[str, Any] = call(
            "optimizer.frameworks.tensorflow_process:convert",
            (str(folder.absolute()), str(path.absolute()), _OPSET, size, _IMAGES),
            limits=_LIMITS,
            interpreter=None if interpreter is None else str(interpreter),
        )
    except ChildFailed as error:
        raise MissingLibrary(
            f"{name} cannot convert {folder}: the process {error.message}",
            hint="it needs Python 3.11 or later with tensorflow and tf2onnx",
        ) from error
    if "missing" in facts:
        raise MissingLibrary(
            f"{name} cannot convert {folder}: {facts['missing']}", hint=_HOW_TO_INSTALL
        )
    if "refused" in facts:
        raise GraphError(f"{folder}: {facts['refused']}", hint=_BY_HAND.format(folder))
    return facts


def _difference(source: SourceGraph, facts: Mapping[str, Any], size: int) -> float | None:
    """How far the ONNX file is from TensorFlow; ``None`` if TensorFlow does not give the output."""
    outputs = facts["outputs"]
    only = next(iter(outputs.values())) if len(outputs) == 1 else None
    expected = np.asarray(outputs.get(source.output_name, only), np.float32)
    shape = [_IMAGES, *(side or size for side in facts["shape"][1:])]
    batch = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    if any(change.rule.startswith("NHWC") for change in source.changes):
        batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    found = source_runner(source)(batch)
    if expected.size != found.size:
        return None
    expected = expected.reshape(found.shape)
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def _folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files."""
    hasher = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hasher.update(f"{path.relative_to(folder)}\0{digest(path)}\0".encode())
    return hasher.hexdigest()
