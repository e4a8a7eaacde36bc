"""ONNX Runtime sessions on a GPU: no silent fallback, and batches bound in device memory."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines.batching import check_batch
from optimizer.engines.cuda_bindings import HINT_DEVICE
from optimizer.engines.protocol import Array, TensorSpec
from optimizer.engines.providers.settings import Choice
from optimizer.engines.providers.shared_objects import preload
from optimizer.engines.providers.status import library_of, required_libraries
from optimizer.engines.providers.table import CUDA, PROVIDERS, Provider
from optimizer.errors import (
    BuildError,
    MissingDevice,
    MissingLibrary,
    ResnetOptError,
    UsageError,
)
from optimizer.results import LayerInfo

__all__ = ["DeviceBound", "ProviderSession", "open_with_provider", "tensor_spec"]

_graph_ids = itertools.count(1)


def open_with_provider(model: Path, options: Any, choice: Choice, device: int) -> Any:
    """Open a session that really uses the requested provider.

    If a provider cannot start, ONNX Runtime falls back to the CPU and prints a line to standard
    error. Here that line becomes the error.

    Args:
        model: The ONNX file.
        options: Session options.
        choice: The provider and its options.
        device: Index of the GPU.

    Raises:
        MissingLibrary: The provider could not start; the message is from ONNX Runtime.
        MissingDevice: The provider does not list the GPU.
        BuildError: The provider could not open the graph.
    """
    import onnxruntime as ort

    provider = choice.provider
    _load_libraries(provider)
    with _captured_stderr() as captured:
        try:
            if provider.plugin is not None:
                _add_plugin(options, choice, device)
                # Providers in the options must not be listed again.
                session = ort.InferenceSession(model, options, enable_fallback=0)
            else:
                session = ort.InferenceSession(
                    model, options, providers=_chain(choice, device), enable_fallback=0
                )
        except ResnetOptError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise _failure(provider, [*captured(), str(error)]) from error
        if provider.registered not in session.get_providers():
            raise _failure(provider, captured(), started=False)
    session.disable_fallback()  # nor at run time
    return session


def _chain(choice: Choice, device: int) -> list[tuple[str, dict[str, str]]]:
    """The provider, its fallbacks, and the CPU, which ONNX Runtime always needs."""
    device_option = {"device_id": str(device)}
    chain: list[tuple[str, dict[str, str]]] = []
    provider: Provider | None = choice.provider
    while provider is not None and provider.on_gpu:
        # Fallbacks compute in the same type: no TF32 for FP32.
        options = choice.options if provider is choice.provider else {"use_tf32": "0"}
        chain.append((provider.registered, {**device_option, **options}))
        provider = PROVIDERS[provider.fallback] if provider.fallback is not None else None
    return [*chain, ("CPUExecutionProvider", {})]


def _add_plugin(options: Any, choice: Choice, device: int) -> None:
    import onnxruntime as ort

    registered, module = choice.provider.registered, str(choice.provider.plugin)
    if all(listed.ep_name != registered for listed in ort.get_ep_devices()):
        # The import loads the libraries that the module contains.
        path = importlib.import_module(module).get_library_path()
        ort.register_execution_provider_library(registered, path)
    devices = [listed for listed in ort.get_ep_devices() if listed.ep_name == registered]
    if device >= len(devices):
        raise MissingDevice(
            f"provider {choice.provider.name} lists {len(devices)} GPU(s), but not cuda:{device}",
            hint=HINT_DEVICE,
        )
    options.add_provider_for_devices([devices[device]], dict(choice.options))


def _load_libraries(provider: Provider) -> None:
    # The CUDA provider's library allocates the memory for a plugin's batches.
    for loaded in (CUDA, provider) if provider.on_gpu else ():
        _load_for(loaded)


def _load_for(provider: Provider) -> None:
    path = library_of(provider)
    if path is not None:
        preload(required_libraries(provider, path), path.parent if provider.plugin else None)


def _failure(provider: Provider, lines: Sequence[str], *, started: bool = True) -> ResnetOptError:
    """Convert ONNX Runtime's messages into an error about the provider's libraries or the graph."""
    text = " ".join(lines)
    missing = re.search(r"with error: (.+?: cannot open shared object file)", text)
    if started and missing is None:
        return BuildError(f"provider {provider.name} failed: {_shortened(text)}")
    reason = missing[1] if missing is not None else _shortened(text)
    return MissingLibrary(
        f"ONNX Runtime could not start its provider {provider.name}: {reason}",
        hint="resnet-opt doctor lists what each provider needs",
    )


def _shortened(text: str) -> str:
    # Remove colour codes and positions in ONNX Runtime's source.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    plain = re.sub(r"\S*/onnxruntime_src/\S+", "", plain)
    return " ".join(plain.split())[:300] or "no reason given"


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Capture standard error, including native code; without an exception it is printed afterwards.

    Yields:
        A function that returns the captured lines.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        original = os.dup(2)
        os.dup2(file.fileno(), 2)

        def lines() -> list[str]:
            file.seek(0)
            return file.read().decode(errors="replace").splitlines()

        try:
            yield lines
        finally:
            os.dup2(original, 2)
            os.close(original)
        for line in lines():
            sys.stderr.write(line + "\n")


def tensor_spec(node: Any) -> TensorSpec:
    """Name, shape and dtype of a session's input or output."""
    shape = tuple(d if isinstance(d, int) else None for d in node.shape)
    return TensorSpec(node.name, shape, "uint8" if node.type == "tensor(uint8)" else "float32")


class ProviderSession:
    """See `optimizer.engines.protocol.Session`; batches are in the provider's memory.

    Args:
        session: ONNX Runtime's session.
        layers: The layers with their providers.
        memory: Where batches are stored: ONNX Runtime's device name (``cuda``, ``cpu``) and index.
        batches: Smallest and largest compiled batch size; ``None`` for no limit.
    """

    def __init__(
        self,
        session: Any,
        layers: list[LayerInfo],
        memory: tuple[str, int],
        batches: tuple[int, int | None] = (1, None),
    ) -> None:
        self._session = session
        self._layers = layers
        self._memory = memory
        self._batches = batches
        self._scratch: DeviceBound | None = None
        self.input = tensor_spec(session.get_inputs()[0])
        self.output = tensor_spec(session.get_outputs()[0])

    def run(self, batch: Array) -> Array:
        """See `Session.run`; a batch outside the compiled sizes is split or padded."""
        check_batch(batch, self.input)
        low, high = self._batches
        step = high or len(batch)
        outputs = []
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            missing = max(0, low - len(part))
            if missing:
                part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            outputs.append(self._infer(part)[: len(part) - missing])
        return np.concatenate(outputs)

    def _infer(self, batch: Array) -> Array:
        bound = self._scratch
        if bound is None or bound.images != len(batch):
            bound = self._scratch = self._bound(batch)
        else:
            bound.fill(batch)
        bound.upload()
        bound.enqueue()
        bound.wait()
        bound.download()
        return bound.output()

    def bind(self, batch: Array) -> DeviceBound:
        """See `Session.bind`.

        Raises:
            UsageError: The engine is not compiled for this batch size.
        """
        check_batch(batch, self.input)
        low, high = self._batches
        if len(batch) < low or (high is not None and len(batch) > high):
            raise UsageError(
                f"the engine is compiled for batches of {low} to {high}, not {len(batch)}",
                hint="build the engine with another --profile",
            )
        return self._bound(batch)

    def _bound(self, batch: Array) -> DeviceBound:
        return DeviceBound(self._session, self.input, self.output, batch, self._memory)

    def layers(self) -> list[LayerInfo]:
        """See `Session.layers`."""
        return self._layers

    def close(self) -> None:
        """See `Session.close`."""
        self._scratch = None
        self._session = None


class DeviceBound:
    """See `optimizer.engines.protocol.Bound`; input and output are in the provider's memory."""

    def __init__(
        self,
        session: Any,
        source: TensorSpec,
        target: TensorSpec,
        batch: Array,
        memory: tuple[str, int],
    ) -> None:
        import onnxruntime as ort

        self._session = session
        self.images = len(batch)
        self._host = np.ascontiguousarray(batch)
        # Separate memory: a value created from an array may share the caller's memory.
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(
            list(self._host.shape), self._host.dtype, *memory
        )
        self._input.update_inplace(self._host)
        shape = [self.images, *(int(size or 0) for size in target.shape[1:])]
        self._output = ort.OrtValue.ortvalue_from_shape_and_type(
            shape, np.dtype(target.dtype), *memory
        )
        self._result: Array = np.empty(shape, np.float32)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(source.name, self._input)
        self._binding.bind_ortvalue_output(target.name, self._output)
        # A captured CUDA graph contains these addresses, so each binding needs its own graph.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("gpu_graph_id", str(next(_graph_ids)))

    def fill(self, batch: Array) -> None:
        """Use another batch of the same size; `upload` copies it."""
        self._host = np.ascontiguousarray(batch)

    def upload(self) -> None:
        """See `Bound.upload`."""
        self._input.update_inplace(self._host)

    def enqueue(self) -> None:
        """See `Bound.enqueue`."""
        self._session.run_with_iobinding(self._binding, self._run_options)

    def wait(self) -> None:
        """See `Bound.wait`."""
        self._binding.synchronize_outputs()

    def download(self) -> None:
        """See `Bound.download`."""
        self._result = np.array(self._output.numpy(), np.float32)

    def output(self) -> Array:
        """See `Bound.output`."""
        return self._result
