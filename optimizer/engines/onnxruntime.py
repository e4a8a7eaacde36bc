"""ONNX Runtime on the CPU: FP32 and INT8 graphs; and graphs executed exactly as written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines.batching import check_batch, run_in_chunks
from optimizer.engines.graph_facts import annotate
from optimizer.engines.protocol import Array, Availability, BuildSettings, Built, TensorSpec
from optimizer.errors import BuildError, UnsupportedPrecision
from optimizer.progress import Progress
from optimizer.results import LayerInfo
from optimizer.targets.hardware import cpu_features

__all__ = ["OnnxRuntime", "as_written", "tapped"]

PROVIDERS = ["CPUExecutionProvider"]
_COMPUTED = {"fp32", "int8", "mixed"}


class OnnxRuntime:
    """The ``onnxruntime`` backend; an engine is the model after all graph optimizations."""

    name = "onnxruntime"
    suffix = ".ort.onnx"
    libraries = ("onnxruntime-gpu", "onnxruntime")

    def availability(self) -> Availability:
        """See `Backend.availability`."""
        from importlib import metadata

        for name in self.libraries:
            try:
                return Availability(True, True, f"{name} {metadata.version(name)}, provider CPU")
            except metadata.PackageNotFoundError:
                continue
        return Availability(
            False, False, "onnxruntime is not installed", "pip install onnxruntime-gpu"
        )

    def device(self) -> dict[str, Any]:
        """See `Backend.device`; layouts are chosen for the CPU's vector width."""
        cpu = cpu_features()
        return {"kind": "cpu", "model": cpu.model, "flags": cpu.flags}

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """See `Backend.build`."""
        import onnxruntime as ort

        self.engine_settings(settings)
        progress.start(f"onnxruntime {settings.precision}", total=2)
        options = _options(settings.threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(output)
        started = time.perf_counter()
        try:
            ort.InferenceSession(graph, options, providers=PROVIDERS)
        except Exception as error:
            line = str(error).strip().splitlines()[0]
            raise BuildError(f"ONNX Runtime could not compile {graph.name}: {line}") from error
        seconds = time.perf_counter() - started
        progress.advance(note="reading the layers")
        layers = annotate(_layers(output), graph)
        progress.advance()
        progress.finish(f"{len(layers)} layers")
        notes = []
        if settings.options.get("storage_only"):
            notes.append(f"{settings.precision} storage, FP32 compute")
        return Built(layers=layers, seconds=seconds, notes=notes)

    def load(
        self,
        engine: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
    ) -> Session:
        """See `Backend.load`."""
        return self.load_streams(engine, streams=1, threads=threads, device=device)[0]

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,  # noqa: ARG002 - there is one CPU
    ) -> list[Session]:
        """See `ConcurrentBackend.load_streams`.

        A session has one pool of threads, and every thread that calls it computes too: with the
        callers, the pool has as many threads as were asked for.
        """
        import onnxruntime as ort

        from optimizer.artifacts import read_manifest

        threads = threads or read_manifest(engine).settings.get("threads")
        options = _options(max(1, (threads or cpu_features().physical_cores) - streams + 1))
        # The file is optimized already; doing it again would only cost start-up time.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        shared = ort.InferenceSession(engine, options, providers=PROVIDERS)
        return [Session(shared, engine) for _ in range(streams)]

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """What this backend adds to the manifest's settings; refuses what it does not compute."""
        if settings.precision not in _COMPUTED and not settings.options.get("storage_only"):
            raise UnsupportedPrecision(
                f"ONNX Runtime does not compute {settings.precision.upper()} on a CPU: "
                "it would compute in FP32",
                mend="--engine tensorrt or tensorrt-rtx, or --storage-only for smaller files",
            )
        return {"providers": PROVIDERS}


def _options(threads: int | None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_features().physical_cores
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


class Session:
    """An inference session."""

    def __init__(self, session: Any, engine: Path | None = None) -> None:
        self._session = session
        self._engine = engine
        self.input = _spec(session.get_inputs()[0])
        self.output = _spec(session.get_outputs()[0])

    def run(self, batch: Array) -> Array:
        """See `Session.run` of the protocol."""
        check_batch(batch, self.input)
        size = self.input.shape[0]
        if size is not None:
            return run_in_chunks(self._infer, batch, size)
        return self._infer(np.ascontiguousarray(batch))

    def _infer(self, batch: Array) -> Array:
        (outputs,) = self._session.run([self.output.name], {self.input.name: batch})
        return np.asarray(outputs, np.float32)

    def bind(self, batch: Array) -> _Bound:
        """See `Session.bind` of the protocol; the batch must have the engine's own size."""
        check_batch(batch, self.input)
        return _Bound(self._session, self.input.name, self.output.name, np.ascontiguousarray(batch))

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers` of the protocol."""
        return _layers(self._engine) if self._engine is not None else []

    def close(self) -> None:
        """See `Session.close` of the protocol."""
        self._session = None


class _Bound:
    """One batch bound by `IOBinding`: no copy and no allocation in the timed call."""

    def __init__(self, session: Any, input_name: str, output_name: str, batch: Array) -> None:
        import onnxruntime as ort

        self._session = session
        self._binding = session.io_binding()
        self._input = ort.OrtValue.ortvalue_from_numpy(batch)
        self._binding.bind_ortvalue_input(input_name, self._input)
        classes = session.get_outputs()[0].shape[-1]
        self._output = ort.OrtValue.ortvalue_from_shape_and_type([len(batch), classes], np.float32)
        self._binding.bind_ortvalue_output(output_name, self._output)

    def upload(self) -> None:
        """Nothing: the engine reads the batch where it lies."""

    def enqueue(self) -> None:
        """Compute."""
        self._session.run_with_iobinding(self._binding)

    def wait(self) -> None:
        """Nothing: `enqueue` has computed."""

    def download(self) -> None:
        """Nothing: the outputs are in host memory."""

    def output(self) -> Array:
        """See `Bound.output`."""
        return np.asarray(self._output.numpy(), np.float32)


def _spec(node: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else None for d in node.shape)
    return TensorSpec(node.name, shape, "uint8" if node.type == "tensor(uint8)" else "float32")


def as_written(graph: Path, *, threads: int | None = None) -> Session:
    """Open a graph to be executed node by node as its text says, with no optimization.

    This is the executor of every hop between PyTorch and an engine: an INT8 graph computes its
    Q/DQ nodes one by one in FP32, so what it loses is lost by quantization and not by an engine.
    """
    import onnxruntime as ort

    options = _options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Several graphs are open at once in a validation; spinning threads would wait for each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return Session(ort.InferenceSession(graph, options, providers=PROVIDERS))


def tapped(graph: Path, names: Sequence[str]) -> Callable[[Array], dict[str, Array]]:
    """A function that runs a graph as written and returns the named tensors beside the outputs.

    Args:
        graph: The ONNX file.
        names: Tensors to look at; a graph input is allowed.

    Returns:
        Maps a batch to ``{name: array}``.
    """
    import onnx
    import onnxruntime as ort

    proto = onnx.load(graph)
    source = proto.graph.input[0].name
    present = {v.name for v in proto.graph.output}
    for name in names:
        if name not in present and name != source:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = _options(None)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=PROVIDERS)
    fetched = [name for name in names if name != source]

    def run(batch: Array) -> dict[str, Array]:
        values = dict(zip(fetched, session.run(fetched, {source: batch}), strict=True))
        if source in names:
            values[source] = batch
        return values

    return run


_INT8_OPS = {
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "ConvInteger",
    "QLinearAdd",
    "MatMulIntegerToFloat",
    "QLinearGlobalAveragePool",
    "QLinearAveragePool",
    "DynamicQuantizeMatMul",
}
_FUSED = {"QLinearConv", "QGemm"}
_CASTS = {"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "ReorderInput", "ReorderOutput"}


def _layers(engine: Path) -> list[LayerInfo]:
    """Layers of an optimized model: an operation that ends in INT8 kernels carries their name."""
    import onnx

    proto = onnx.load(engine)
    types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.value_info}
    layers = []
    for node in proto.graph.node:
        int8 = node.op_type in _INT8_OPS or types.get(node.output[0]) in {2, 3}
        layers.append(
            LayerInfo(
                name=node.name or node.output[0],
                torch_names=[] if node.op_type in _CASTS else _modules(node),
                type=node.op_type,
                precision="int8" if int8 else "fp32",
            )
        )
    return layers


def _modules(node: Any) -> list[str]:
    """Names that may be the PyTorch module of a fused node: its weight still carries it.

    Other quantizers rename weights; a fused convolution is then told by its own name, to which ONNX
    Runtime adds ``_token_42``. `annotate` drops what is no module.
    """
    marks = (".weight", ".bias")
    stems = [name.split(mark)[0] for name in node.input for mark in marks if mark in name]
    own = [re.sub(r"_token_\d+$", "", node.name)] if node.op_type in _FUSED else []
    return list(dict.fromkeys([*stems[:1], *own]))
