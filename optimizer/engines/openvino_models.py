"""The compiled models in an OpenVINO engine: one for any batch size, and some for one size each.

A model compiled for one shape plans its memory once and infers no shapes at run time. That saves a
few percent at 224 pixels and more than 10 % at 32 pixels.

An engine file is an OpenVINO export, and plain OpenVINO can import it. The models for fixed sizes
are appended in a comment at the end of its XML, as the blocks in which they differ from the first,
because the weights are the same.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from optimizer.engines.protocol import TensorSpec
from optimizer.errors import ArtifactError, UsageError
from optimizer.processes import home_variable
from optimizer.targets.hardware import cpu_features

__all__ = [
    "FUSED_SUMS", "Compiled", "Models", "compile_model", "config", "first_line", "pack", "spec_of",
]  # fmt: skip

os.environ.update(home_variable(os.environ))  # before `import openvino`, which needs it

FUSED_SUMS = {"SNIPPETS_MODE": "DISABLE"}
"""Property for INT8 models; see `compile_model`."""

_OPEN, _CLOSE = b"\n<!-- resnet-opt fixed batches ", b" -->"
_BLOCK = 4096


class Models:
    """The models of one engine, each opened on first use.

    Args:
        blob: The output of `pack`.
        config: OpenVINO properties for every model.
        device: OpenVINO's device.
    """

    def __init__(self, blob: bytes, config: Mapping[str, Any], device: str = "CPU") -> None:
        import openvino as ov

        self._core = ov.Core()
        self._first, self._fixed = _split(blob)
        self._config, self._device = dict(config), device
        self._opened: dict[int | None, Any] = {None: self._open(self._first)}
        self._lock = threading.Lock()

    @property
    def any_batch(self) -> Any:
        """The model for any batch size, or for the fixed size of the graph."""
        return self._opened[None]

    def for_batch(self, size: int) -> Any:
        """The model for a batch of this size: a fixed-size model if there is one."""
        if size not in self._fixed:
            return self.any_batch
        with self._lock:  # streams share the models
            if size not in self._opened:
                self._opened[size] = self._open(self._restored(size))
            return self._opened[size]

    def reopen(self, size: int, **properties: str) -> Any:
        """A second copy of the `for_batch` model, opened with additional properties."""
        return self._open(
            self._restored(size) if size in self._fixed else self._first, **properties
        )

    def _restored(self, size: int) -> bytes:
        return _restore(self._first, self._fixed[size])

    def _open(self, model: bytes, **properties: str) -> Any:
        return self._core.import_model(model, self._device, {**self._config, **properties})


class Compiled:
    """A graph compiled in memory, in place of an engine's `Models`."""

    def __init__(self, model: Any) -> None:
        self.any_batch = model

    def for_batch(self, size: int) -> Any:
        """The model of the graph, which takes any size."""
        del size
        return self.any_batch

    def reopen(self, size: int, **properties: str) -> Any:
        """Always refuses: there is no file to open again."""
        del size, properties
        raise UsageError(
            "a graph compiled in memory cannot be timed by layer",
            hint="build an engine from it: resnet-opt build --engine openvino",
        )


def pack(model: bytes, fixed: Mapping[int, bytes]) -> bytes:
    """Append the models for fixed sizes to the model for any size.

    Args:
        model: The exported model for any size.
        fixed: Exported models by batch size.
    """
    if not fixed:
        return model
    differences = {str(size): _difference(model, other) for size, other in fixed.items()}
    return model + _OPEN + json.dumps(differences).encode("ascii") + _CLOSE


def _split(blob: bytes) -> tuple[bytes, dict[int, dict[str, Any]]]:
    at = blob.rfind(_OPEN)
    if at < 0:
        return blob, {}
    try:
        differences = json.loads(blob[at + len(_OPEN) : -len(_CLOSE)])
        return blob[:at], {int(size): difference for size, difference in differences.items()}
    except ValueError as error:
        raise ArtifactError(
            "the engine's models for fixed batches are damaged", hint="build the engine again"
        ) from error


def _difference(model: bytes, other: bytes) -> dict[str, Any]:
    """The blocks of ``other`` that differ from the block at the same position in ``model``."""
    ours, theirs = _blocks(model), _blocks(other)
    common = min(len(ours), len(theirs))
    changed = np.ones(len(theirs), bool)
    changed[:common] = (ours[:common] != theirs[:common]).any(axis=1)
    packed = np.packbits(changed).tobytes() + theirs[changed].tobytes()
    return {"bytes": len(other), "blocks": base64.b64encode(zlib.compress(packed)).decode("ascii")}


def _restore(model: bytes, difference: Mapping[str, Any]) -> bytes:
    size = int(difference["bytes"])
    packed = np.frombuffer(zlib.decompress(base64.b64decode(difference["blocks"])), np.uint8)
    count = -(-size // _BLOCK)
    bits = -(-count // 8)
    changed = np.unpackbits(packed[:bits], count=count).astype(bool)
    blocks = np.zeros((count, _BLOCK), np.uint8)
    ours = _blocks(model)[:count]
    blocks[: len(ours)] = ours
    blocks[changed] = packed[bits:].reshape(-1, _BLOCK)
    return blocks.tobytes()[:size]


def _blocks(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes as one block per row, zero-padded."""
    missing = -len(data) % _BLOCK
    return np.frombuffer(data + bytes(missing), np.uint8).reshape(-1, _BLOCK)


def config(hint: str, threads: int | None, streams: int = 1) -> dict[str, Any]:
    """OpenVINO properties for lowest latency, with one inference at a time per stream."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads or cpu_features().physical_cores),
        "INFERENCE_PRECISION_HINT": hint,
        "ENABLE_HYPER_THREADING": "NO",
    }


def compile_model(core: Any, model: Any, properties: Mapping[str, Any], precision: str) -> Any:
    """Compile a model for the CPU, keeping the residual sums of INT8 graphs fused.

    The plugin fuses a block's last convolution, the sum with the shortcut and what follows into one
    kernel. If only the shortcut is quantized, its INT8 passes insert a multiplication before the sum,
    and in fixed-shape models its snippets compiler then takes over the sum: 12 of the 16 sums of a
    ResNet-50 read and wrote FP32 (OpenVINO 2026.4). Exported models keep the fusions of their
    compilation.

    Args:
        core: An ``openvino.Core``.
        model: A model read by ``core``.
        properties: See `config`.
        precision: Precision of the graph.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    if precision in {"int8", "mixed"}:
        try:
            return core.compile_model(model, "CPU", {**properties, **FUSED_SUMS})
        except RuntimeError as error:
            if next(iter(FUSED_SUMS)) not in str(error):  # a release without this property
                raise
    return core.compile_model(model, "CPU", dict(properties))


def spec_of(port: Any) -> TensorSpec:
    """Name, shape and dtype of a model's input or output."""
    shape = tuple(int(d.get_length()) if d.is_static else None for d in port.partial_shape)
    dtype = {"f32": "float32", "u8": "uint8"}.get(port.element_type.get_type_name(), "float32")
    return TensorSpec(port.any_name, shape, dtype)


def first_line(error: Exception) -> str:
    """The last line of an OpenVINO error, which starts with its call stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
