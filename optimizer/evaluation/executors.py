"""How each hop is computed: graphs as written, engines by their own backend.

A graph between the reference and an engine is executed node by node as written, so that any loss is
due to the graph and not to a compiler. ONNX Runtime does this with graph optimizations off. Its CPU
provider has no half-precision kernels, so tensors in FP16 and BF16, also those around INT8 and FP8
layers, are rounded by `optimizer.graphs.half_rounding`: every operation computes in FP32 and its result
is rounded to the type, which equals hardware with FP32 accumulation and without fusion. BF16 graphs
run in OpenVINO if the CPU computes BF16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import library_versions
from optimizer.evaluation.chain import Step
from optimizer.processes.ranks import local_device
from optimizer.targets.hardware import cpu_features

if TYPE_CHECKING:
    from optimizer.engines.protocol import Session

__all__ = ["Executor", "chunk_of", "in_chunks", "open_step"]

Array = NDArray[Any]
_CHUNK_PIXELS = 2 * 224**2
_QDQ = frozenset({"int8", "fp8", "mixed"})
_WIDE = frozenset({"fp32", "fp64"})


def chunk_of(image_size: int) -> int:
    """Number of images to compute per call, to limit memory.

    A graph executed as written keeps the tensors of a whole block in FP32, for every open graph: 32
    images of 224 pixels would take gigabytes, and chunks of four 100 MB more than chunks of two.
    Small images use larger chunks because each call has overhead. At 224 pixels it has none that
    shows: CPU time per image is that of larger chunks. The last bits of PyTorch's outputs depend on
    the chunk, so stored predictions of other chunks are not used.
    """
    return max(1, _CHUNK_PIXELS // image_size**2)


def in_chunks(run: Callable[[Array], Array], batch: Array, size: int | None) -> Array:
    """Compute a batch in chunks of at most ``size`` images."""
    if size is None or len(batch) <= size:
        return run(batch)
    return np.concatenate([run(batch[i : i + size]) for i in range(0, len(batch), size)])


@dataclass(frozen=True)
class Executor:
    """An opened hop.

    Attributes:
        name: Description for results.
        session: The session that computes it.
        chunk: Images per call; ``None`` for the whole batch.
        explain: Maps images with unusable outputs to the reason, if it can be found.
        probabilities: Whether the outputs are probabilities, not logits.
    """

    name: str
    session: Session
    chunk: int | None = None
    explain: Callable[[Array], str | None] | None = None
    probabilities: bool = False

    def run(self, batch: Array) -> Array:
        """Logits of a batch, N x classes float32."""
        return in_chunks(self.session.run, batch, self.chunk)

    @property
    def takes_uint8(self) -> bool:
        """Whether the input is N x H x W x 3 uint8."""
        return self.session.input.dtype == "uint8"


def open_step(step: Step, image_size: int) -> Executor:
    """Open the executor of a hop for images of ``image_size`` pixels.

    Raises:
        EnvironmentFault: The engine cannot run on this machine.
        UsageError: The file is of the wrong kind.
        Exception: Any other error of the executing library.
    """
    if step.kind != "graph":
        return _open_engine(step)
    chunk = chunk_of(image_size)
    if step.precision == "bf16" and cpu_features().bf16:
        return replace(_open_bf16(step.path), chunk=chunk)
    return replace(_open_as_written(step), chunk=chunk)


def _open_as_written(step: Step) -> Executor:
    from optimizer.engines.onnxruntime import as_written
    from optimizer.graphs.half_rounding import computed_as_written, first_overflow
    from optimizer.graphs.import_check import runnable
    from optimizer.graphs.source_ends import ends_in_probabilities, open_source

    source = open_source(step.path, step.source)
    rounded = None if step.precision in _WIDE else computed_as_written(source.proto)
    half = "BF16" if step.precision == "bf16" else "FP16"
    note = f", FP32 results rounded to {half}" if rounded is not None else ""
    if step.precision in _QDQ:
        note = f", Q/DQ with {'FP32' if rounded is None else half} between" + note
    if step.source is not None and step.source.output_name is not None:
        note += f", output {step.source.output_name}"
    name = f"{_onnxruntime()}, optimizations off{note}"
    probabilities = ends_in_probabilities(source.proto)
    if rounded is None:
        written = step.path if not source.changes else runnable(source).SerializeToString()
        return Executor(name, as_written(written), probabilities=probabilities)
    return Executor(
        name,
        as_written(rounded.SerializeToString()),
        explain=lambda images: first_overflow(rounded, images),
        probabilities=probabilities,
    )


def _open_engine(step: Step) -> Executor:
    from optimizer.engines.opening import gives_probabilities, open_engine
    from optimizer.engines.placement import runs_on_gpu

    if step.manifest is None:
        name = f"PyTorch {library_versions('torch')['torch']}, eager FP32"
        return Executor(name, open_engine(step.path))
    settings = step.manifest.settings
    # Under torchrun each process has its own GPU; CPU engines share the CPU.
    device = step.device or (local_device() if runs_on_gpu(settings) else None)
    session = open_engine(step.path, device=device)
    version = next(iter(step.manifest.libraries.values()), "")
    provider = (settings.get("options") or {}).get("provider")
    name = f"{settings.get('backend')} {version}" + (f" ({provider})" if provider else "")
    return Executor(
        f"{name} engine, {step.precision.upper()}",
        session,
        probabilities=gives_probabilities(step.path),
    )


def _open_bf16(path: Path) -> Executor:
    from optimizer.engines.openvino import Session as OpenVinoSession
    from optimizer.engines.openvino_models import Compiled

    import openvino as ov  # isort: skip - the module above makes it loadable without HOME

    core = ov.Core()
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(path), "CPU", hints)
    version = library_versions("openvino")["openvino"]
    return Executor(f"OpenVINO {version}, BF16", OpenVinoSession(Compiled(compiled)))


def _onnxruntime() -> str:
    versions = library_versions("onnxruntime-gpu", "onnxruntime")
    return f"ONNX Runtime {next(iter(versions.values()), '')}"
