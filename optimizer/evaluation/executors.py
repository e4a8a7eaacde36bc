"""How each hop is computed: graphs as written, engines by their own backend.

A graph between the reference and an engine is executed node by node as written, so that any loss is
due to the graph and not to a compiler. ONNX Runtime does this with graph optimizations off. Its CPU
provider has no BF16 convolution, so BF16 graphs run in OpenVINO if the CPU supports BF16, and
otherwise in ONNX Runtime with every operation in FP32 and its result rounded to BF16, which equals
BF16 hardware with FP32 accumulation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import library_versions, scratch_folder
from optimizer.evaluation.chain import Step
from optimizer.evaluation.shards import local_device
from optimizer.graphs.onnx_files import open_onnx, write_graph
from optimizer.targets.hardware import cpu_features

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.engines.protocol import Session

__all__ = ["Executor", "chunk_of", "in_chunks", "open_step", "round_to_bf16"]

Array = NDArray[Any]
_CHUNK_PIXELS = 2 * 224**2
_GRAPH_NOTES = {
    "fp16": ", FP16 tensors but mostly FP32 arithmetic",
    "int8": ", Q/DQ with FP32 between",
    "fp8": ", Q/DQ with FP32 between",
    "mixed": ", Q/DQ with FP32 between",
}


def chunk_of(image_size: int) -> int:
    """Number of images to compute per call, to limit memory.

    A graph executed as written keeps the tensors of a whole block in FP32, for every open graph: 32
    images of 224 pixels would take gigabytes, and chunks of four 100 MB more than chunks of two.
    Small images use larger chunks because each call has overhead.
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
    """

    name: str
    session: Session
    chunk: int | None = None

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
    if step.kind == "engine":
        return _open_engine(step)
    chunk = chunk_of(image_size)
    if step.precision == "bf16":
        return replace(_open_bf16(step.path), chunk=chunk)
    from optimizer.engines.onnxruntime import as_written

    note = _GRAPH_NOTES.get(step.precision, "")
    name = f"{_onnxruntime()}, optimizations off{note}"
    return Executor(name, as_written(step.path), chunk)


def _open_engine(step: Step) -> Executor:
    from optimizer.engines.opening import open_engine
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
    return Executor(f"{name} engine, {step.precision.upper()}", session)


def _open_bf16(path: Path) -> Executor:
    if cpu_features().bf16:
        from optimizer.engines.openvino import Session as OpenVinoSession
        from optimizer.engines.openvino_models import Compiled

        import openvino as ov  # isort: skip - the module above makes it loadable without HOME

        core = ov.Core()
        hints = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(core.read_model(path), "CPU", hints)
        version = library_versions("openvino")["openvino"]
        return Executor(f"OpenVINO {version}, BF16", OpenVinoSession(Compiled(compiled)))
    import onnx
    import onnx_ir as ir

    from optimizer.engines.onnxruntime import as_written

    # Without shape inference, untyped values would not be recognized as BF16.
    model = ir.from_proto(onnx.shape_inference.infer_shapes(open_onnx(path).proto))
    round_to_bf16(model)
    with scratch_folder("bf16") as folder:
        emulated = folder / path.name
        write_graph(model, emulated)
        session = as_written(emulated)
    name = f"{_onnxruntime()}, optimizations off, FP32 results rounded to BF16"
    return Executor(name, session)


def round_to_bf16(model: ir.Model) -> bool:
    """Replace BF16 arithmetic with FP32 arithmetic whose results are rounded to BF16, in place.

    Every node except Cast reads BF16 inputs through a Cast to FP32 and writes BF16 outputs through a
    Cast back. Tensors keep their names and values. Every tensor must have a type.

    Returns:
        Whether anything was replaced.
    """
    import onnx_ir as ir

    from optimizer.graphs.editing import insert_after, make_cast

    graph, wide = model.graph, {}
    bf16, fp32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    changed = False
    for node in [n for n in graph if n.op_type != "Cast"]:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != bf16:
                continue
            if value not in wide:
                name = f"{value.name}.fp32"
                cast = make_cast(value, fp32, name=f"{name}.cast", output=name)
                insert_after(graph, value, cast)
                wide[value] = cast.outputs[0]
            node.replace_input_with(index, wide[value])
            changed = True
        for value in node.outputs:
            if value.dtype != bf16:
                continue
            uses, name = list(value.uses()), str(value.name)
            value.dtype, value.name = fp32, f"{name}.exact"
            cast = make_cast(value, bf16, name=f"{name}.cast", output=name)
            graph.insert_after(node, cast)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])
            changed = True
    return changed


def _onnxruntime() -> str:
    versions = library_versions("onnxruntime-gpu", "onnxruntime")
    return f"ONNX Runtime {next(iter(versions.values()), '')}"
