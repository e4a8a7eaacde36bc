"""PyTorch as an engine: the eager FP32 reference, and its common variants.

On a GPU each variant uses its fastest layout and settings: NCHW for FP32, for which channels-last is
slower, channels-last for half precision, and cuDNN's autotuner.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts import find_manifest
from optimizer.engines.batching import check_batch
from optimizer.engines.cuda import cuda_devices
from optimizer.engines.protocol import (
    Array,
    Availability,
    BuildSettings,
    Built,
    Opening,
    TensorSpec,
)
from optimizer.errors import GraphError, UnsupportedPrecision, UsageError
from optimizer.gpu_software import installed_libraries
from optimizer.models.model_sources import is_checkpoint
from optimizer.progress import Progress
from optimizer.results import LayerInfo
from optimizer.targets.hardware import cpu_features

__all__ = ["VARIANTS", "TorchEager", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A way to run a checkpoint in PyTorch.

    Attributes:
        title: The name in reports.
        precision: The precision it computes in.
        compiled: Whether it is compiled with ``torch.compile``.
    """

    title: str
    precision: str = "fp32"
    compiled: bool = False


EAGER = Variant("PyTorch eager")
VARIANTS = {
    "torch-fp16": Variant("PyTorch eager, FP16", precision="fp16"),
    "torch-compile": Variant("torch.compile", compiled=True),
}
"""The variants by their names for ``bench --against``."""


class TorchEager:
    """The ``torch`` backend: eager FP32 in the channels-last layout, the most common way to run it.

    It builds from a checkpoint instead of a graph; the engine is a copy of its weights.
    """

    name = "torch"
    suffix = ".safetensors"
    libraries = ("torch", "torchvision")

    def availability(self) -> Availability:
        """See `Backend.availability`."""
        from importlib import metadata

        try:
            version = metadata.version("torch")
        except metadata.PackageNotFoundError:
            return Availability(
                False, False, "torch is not installed", "pip install torch torchvision"
            )
        return Availability(True, True, f"torch {version}, {self._where()}")

    @staticmethod
    def _where() -> str:
        """Where it runs, without importing PyTorch."""
        if not cuda_devices():
            return "eager on the CPU, channels-last"
        if any(library.name == "torch" for library in installed_libraries()):
            return "eager on the GPU beside engines of a GPU, otherwise on the CPU"
        return "eager on the CPU: this build of PyTorch has no CUDA"

    def device(self) -> dict[str, Any]:
        """See `Backend.device`."""
        return {"kind": "cpu"}

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """Check the settings: the torch engine only supports FP32."""
        if settings.precision != "fp32":
            raise UnsupportedPrecision(
                f"the torch engine is the FP32 reference, not {settings.precision.upper()}",
                hint="--engine auto chooses an engine that supports it",
            )
        return {"memory_format": "channels_last"}

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """See `Backend.build`; ``graph`` is a checkpoint."""
        from optimizer.models import load_model, write_weights

        self.engine_settings(settings)
        if not is_checkpoint(graph):
            raise GraphError(
                f"the torch engine runs a checkpoint, not {graph.name}",
                hint="give the checkpoint: resnet-opt build model.safetensors --engine torch",
            )
        progress.start("torch fp32", total=1)
        started = time.perf_counter()
        if graph.suffix == ".safetensors" and find_manifest(graph) is not None:
            shutil.copyfile(graph, output)
        else:  # the engine is in the one format whose card every reader finds
            write_weights(load_model(graph), output)
        progress.advance()
        progress.finish("copied the weights")
        return Built(layers=[], seconds=time.perf_counter() - started)

    def load(
        self, engine: Path, *, threads: int | None = None, device: str | None = None
    ) -> Session:
        """See `Backend.load`."""
        return self.load_streams(engine, streams=1, threads=threads, device=device)[0]

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[Session]:
        """See `ConcurrentBackend.load_streams`.

        Every thread that calls PyTorch has its own thread pool, so the threads are divided.
        """
        return self.load_with(engine, Opening(), streams=streams, threads=threads, device=device)

    def load_with(
        self,
        engine: Path,
        opening: Opening,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[Session]:
        """See `ChoosesOpening.load_with`; the variants are `VARIANTS`."""
        import torch

        from optimizer.models import load_model

        if opening.variant is not None and opening.variant not in VARIANTS:
            raise UsageError(f"there is no {opening.variant}", hint=f"one of {', '.join(VARIANTS)}")
        variant = VARIANTS[opening.variant] if opening.variant else EAGER
        torch.set_num_threads(max(1, (threads or cpu_features().physical_cores) // streams))
        model = load_model(str(engine))
        return [Session(model, device or "cpu", variant) for _ in range(streams)]


class Session:
    """A module in evaluation mode."""

    def __init__(self, model: Any, device: str = "cpu", variant: Variant = EAGER) -> None:
        import torch

        self._device = torch.device(device)
        self._variant = variant
        self._layout = _layout(self._device.type, variant)
        self._dtype = torch.float16 if variant.precision == "fp16" else torch.float32
        if self._device.type == "cuda":
            _set_up_cuda()
        module = model.module.to(self._device, self._dtype)
        self._module = module.to(memory_format=self._layout)
        self._call = torch.compile(self._module) if variant.compiled else self._module
        size = model.preprocessing.image_size
        self.input = TensorSpec("images", (None, model.channels, size, size), "float32")
        if model.detector is None:
            self.output = TensorSpec("logits", (None, model.num_outputs), "float32")
        else:
            self.output = TensorSpec("head", (None, *model.detector.output_shape), "float32")

    def run(self, batch: Array) -> Array:
        """See `Session.run` of the protocol."""
        check_batch(batch, self.input)
        bound = self.bind(batch)
        bound.enqueue()
        return np.array(bound.output())

    def bind(self, batch: Array) -> _Bound:
        """See `Session.bind` of the protocol."""
        check_batch(batch, self.input)
        return _Bound(self._call, self._device, self._layout, self._dtype, batch)

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers` of the protocol: one layer per module, all in one precision."""
        return [
            LayerInfo(
                name=name,
                torch_names=[name],
                type=type(module).__name__,
                precision=self._variant.precision,
            )
            for name, module in self._module.named_modules()
            if name and not any(module.children())
        ]

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """See `TimesLayers.time_layers`: forward hooks; see `optimizer.engines.torch_layers`."""
        from optimizer.engines.torch_layers import time_modules

        if self._variant.compiled:
            raise UsageError(
                "no layer times with torch.compile, which fuses kernels of several modules"
            )
        bound = self.bind(batch)
        return [
            layer.model_copy(update={"precision": self._variant.precision})
            for layer in time_modules(self._module, bound, calls)
        ]

    def close(self) -> None:
        """See `Session.close` of the protocol."""
        self._module = self._call = None


def _layout(device: str, variant: Variant) -> Any:
    """The fastest memory format for a variant."""
    import torch

    if device == "cuda" and variant.precision == "fp32":
        return torch.contiguous_format
    return torch.channels_last


def _set_up_cuda() -> None:
    """Turn TF32 off and cuDNN's autotuner on.

    Uses the older of PyTorch's two APIs on purpose: ``torch.compile`` reads the older one, and fails
    after the newer one has been used.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


class _Bound:
    def __init__(self, call: Any, device: Any, layout: Any, dtype: Any, batch: Array) -> None:
        import torch

        self._torch, self._call, self._device = torch, call, device
        self._layout, self._dtype = layout, dtype
        self._host = torch.from_numpy(np.ascontiguousarray(batch))
        if device.type == "cuda":  # as for every other engine: the GPU copies from it directly
            self._host = self._host.pin_memory()
        self._output: Any = None
        self.upload()

    def upload(self) -> None:
        """Copy to the device, in the layout and type of the model."""
        images = self._host.to(self._device).to(self._dtype)
        self._batch = images.contiguous(memory_format=self._layout)
        self.wait()

    def enqueue(self) -> None:
        """Start computing; on a CPU, compute synchronously."""
        with self._torch.inference_mode():
            self._output = self._call(self._batch)

    def wait(self) -> None:
        """Wait for the GPU; does nothing on a CPU."""
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)

    def download(self) -> None:
        """Copy the outputs to the host."""
        self._output = self._output.cpu()

    def output(self) -> Array:
        """See `Bound.output`."""
        return np.asarray(self._output.cpu().numpy(), np.float32)
