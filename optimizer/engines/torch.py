"""PyTorch eager: the reference, as an engine among the others."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines.batching import check_batch
from optimizer.engines.protocol import (
    Array,
    Availability,
    BuildSettings,
    Built,
    TensorSpec,
)
from optimizer.errors import GraphError, UnsupportedPrecision
from optimizer.progress import Progress
from optimizer.results import LayerInfo
from optimizer.targets.hardware import cpu_features

__all__ = ["TorchEager"]


class TorchEager:
    """The ``torch`` backend: eager FP32 in the channels-last layout, what most people run.

    It takes a checkpoint instead of a graph, and its engine is a copy of it.
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
        return Availability(True, True, f"torch {version}, eager on the CPU, channels-last")

    def device(self) -> dict[str, Any]:
        """See `Backend.device`."""
        return {"kind": "cpu"}

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """Refuse what eager PyTorch is not used for here."""
        if settings.precision != "fp32":
            raise UnsupportedPrecision(
                f"the torch engine is the FP32 reference, not {settings.precision.upper()}",
                mend="--engine auto for an engine that computes it",
            )
        return {"memory_format": "channels_last"}

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """See `Backend.build`; ``graph`` is a checkpoint."""
        self.engine_settings(settings)
        if graph.suffix != ".safetensors":
            raise GraphError(
                f"the torch engine runs a checkpoint, not {graph.name}",
                mend="resnet-opt build model.safetensors --engine torch",
            )
        progress.start("torch fp32", total=1)
        started = time.perf_counter()
        shutil.copyfile(graph, output)
        progress.advance()
        progress.finish("copied the checkpoint")
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

        Every thread that calls PyTorch has a team of threads of its own: the threads are divided.
        """
        import torch

        from optimizer.models import load_model

        torch.set_num_threads(max(1, (threads or cpu_features().physical_cores) // streams))
        model = load_model(str(engine))
        return [Session(model, device or "cpu") for _ in range(streams)]


class Session:
    """A module in evaluation mode."""

    def __init__(self, model: Any, device: str = "cpu") -> None:
        import torch

        self._device = torch.device(device)
        if self._device.type == "cuda":  # by default its convolutions are TF32, which is not FP32
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision = "ieee"
        module = model.module.to(self._device)
        self._module = module.to(memory_format=torch.channels_last)
        size = model.preprocessing.image_size
        self.input = TensorSpec("images", (None, 3, size, size), "float32")
        self.output = TensorSpec("logits", (None, model.num_classes), "float32")

    def run(self, batch: Array) -> Array:
        """See `Session.run` of the protocol."""
        check_batch(batch, self.input)
        bound = self.bind(batch)
        bound.enqueue()
        return np.array(bound.output())

    def bind(self, batch: Array) -> _Bound:
        """See `Session.bind` of the protocol."""
        check_batch(batch, self.input)
        return _Bound(self._module, self._device, batch)

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers` of the protocol: one layer a module, all FP32."""
        return [
            LayerInfo(name=name, torch_names=[name], type=type(module).__name__, precision="fp32")
            for name, module in self._module.named_modules()
            if name and not any(module.children())
        ]

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """See `TimesLayers.time_layers`: forward hooks; see `optimizer.engines.torch_layers`."""
        from optimizer.engines.torch_layers import time_modules

        check_batch(batch, self.input)
        bound = _Bound(self._module, self._device, batch)
        return time_modules(self._module, bound, calls)

    def close(self) -> None:
        """See `Session.close` of the protocol."""
        self._module = None


class _Bound:
    def __init__(self, module: Any, device: Any, batch: Array) -> None:
        import torch

        self._torch, self._module, self._device = torch, module, device
        self._host = torch.from_numpy(np.ascontiguousarray(batch))
        self._output: Any = None
        self.upload()

    def upload(self) -> None:
        """Copy to the device in the layout the convolutions want."""
        torch = self._torch
        self._batch = self._host.to(self._device).contiguous(memory_format=torch.channels_last)
        self.wait()

    def enqueue(self) -> None:
        """Compute (on a CPU: all of it)."""
        with self._torch.inference_mode():
            self._output = self._module(self._batch)

    def wait(self) -> None:
        """Wait for a GPU; nothing on a CPU."""
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)

    def download(self) -> None:
        """Copy the outputs to the host."""
        self._output = self._output.cpu()

    def output(self) -> Array:
        """See `Bound.output`."""
        return np.asarray(self._output.cpu().numpy(), np.float32)
