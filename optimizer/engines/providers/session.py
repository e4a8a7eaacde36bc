"""Sessions of ONNX Runtime on a GPU: opened without falling back, batches bound in its memory."""

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
from optimizer.engines.providers.status import library_of, needs_of
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
    """Open a session in which the asked provider really is.

    ONNX Runtime goes on with the CPU if a provider cannot be started, with a line on standard
    error. Here that line becomes the error.

    Args:
        model: The ONNX file.
        options: Session options.
        choice: The provider and its options.
        device: Index of the GPU.

    Raises:
        MissingLibrary: The provider could not be started; the message is ONNX Runtime's own.
        MissingDevice: It does not show the GPU.
        BuildError: It could not make anything of the graph.
    """
    import onnxruntime as ort

    provider = choice.provider
    _load_libraries(provider)
    with _standard_error() as said:
        try:
            if provider.plugin is not None:
                _add_plugin(options, choice, device)
                # Providers that were added to the options may not be named again.
                session = ort.InferenceSession(model, options, enable_fallback=0)
            else:
                session = ort.InferenceSession(
                    model, options, providers=_chain(choice, device), enable_fallback=0
                )
        except ResnetOptError:
            raise
        except Exception as error:  # ONNX Runtime's own have no class in common
            raise _failure(provider, [*said(), str(error)]) from error
        if provider.registered not in session.get_providers():
            raise _failure(provider, said(), started=False)
    session.disable_fallback()  # nor while it runs
    return session


def _chain(choice: Choice, device: int) -> list[tuple[str, dict[str, str]]]:
    """The provider, those beneath it, and the CPU, which ONNX Runtime always has."""
    where = {"device_id": str(device)}
    chain: list[tuple[str, dict[str, str]]] = []
    provider: Provider | None = choice.provider
    while provider is not None and provider.on_gpu:
        # What lies beneath takes what is left over, in the same type: no TF32 for FP32.
        own = choice.options if provider is choice.provider else {"use_tf32": "0"}
        chain.append((provider.registered, {**where, **own}))
        provider = PROVIDERS[provider.beneath] if provider.beneath is not None else None
    return [*chain, ("CPUExecutionProvider", {})]


def _add_plugin(options: Any, choice: Choice, device: int) -> None:
    import onnxruntime as ort

    registered, module = choice.provider.registered, str(choice.provider.plugin)
    if all(found.ep_name != registered for found in ort.get_ep_devices()):
        # Importing it loads the libraries that it brings.
        path = importlib.import_module(module).get_library_path()
        ort.register_execution_provider_library(registered, path)
    devices = [found for found in ort.get_ep_devices() if found.ep_name == registered]
    if device >= len(devices):
        raise MissingDevice(
            f"provider {choice.provider.name} shows {len(devices)} GPU(s), not cuda:{device}",
            hint=HINT_DEVICE,
        )
    options.add_provider_for_devices([devices[device]], dict(choice.options))


def _load_libraries(provider: Provider) -> None:
    # Batches of a plugin lie in memory that the CUDA provider's library allocates.
    for one in (CUDA, provider) if provider.on_gpu else ():
        _load_for(one)


def _load_for(provider: Provider) -> None:
    path = library_of(provider)
    if path is not None:
        preload(needs_of(provider, path), path.parent if provider.plugin else None)


def _failure(provider: Provider, lines: Sequence[str], *, started: bool = True) -> ResnetOptError:
    """What ONNX Runtime said, as an error: of its provider's libraries, or else of the graph."""
    text = " ".join(lines)
    found = re.search(r"with error: (.+?: cannot open shared object file)", text)
    if started and found is None:
        return BuildError(f"provider {provider.name} failed: {_first_words(text)}")
    reason = found[1] if found is not None else _first_words(text)
    return MissingLibrary(
        f"ONNX Runtime could not start its provider {provider.name}: {reason}",
        hint="resnet-opt doctor names what each provider needs",
    )


def _first_words(text: str) -> str:
    # Colour codes, and the place in ONNX Runtime's own source.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    plain = re.sub(r"\S*/onnxruntime_src/\S+", "", plain)
    return " ".join(plain.split())[:300] or "it does not say why"


@contextlib.contextmanager
def _standard_error() -> Iterator[Any]:
    """Keep what is written to standard error, by native code too; without a fault it goes on there.

    Yields:
        A function that returns the lines so far.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        original = os.dup(2)
        os.dup2(kept.fileno(), 2)

        def lines() -> list[str]:
            kept.seek(0)
            return kept.read().decode(errors="replace").splitlines()

        try:
            yield lines
        finally:
            os.dup2(original, 2)
            os.close(original)
        for line in lines():
            sys.stderr.write(line + "\n")


def tensor_spec(node: Any) -> TensorSpec:
    """What a session tells of an input or output."""
    shape = tuple(d if isinstance(d, int) else None for d in node.shape)
    return TensorSpec(node.name, shape, "uint8" if node.type == "tensor(uint8)" else "float32")


class ProviderSession:
    """See `optimizer.engines.protocol.Session`; batches are computed in the provider's memory.

    Args:
        session: ONNX Runtime's session.
        layers: The layers with who runs them.
        memory: Where batches lie, by ONNX Runtime's name (``cuda``, ``cpu``), and the index.
        batches: Smallest and largest batch that it is compiled for; ``None`` where free.
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
            UsageError: The batch is not one that the engine is compiled for.
        """
        check_batch(batch, self.input)
        low, high = self._batches
        if len(batch) < low or (high is not None and len(batch) > high):
            raise UsageError(
                f"the engine is compiled for batches of {low} to {high}, not {len(batch)}",
                hint="build it with another --profile",
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
    """See `optimizer.engines.protocol.Bound`; input and output lie in the provider's memory."""

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
        # Memory of its own: made from an array, it may share that array's memory with the caller.
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
        # A captured CUDA graph holds these very addresses; each binding has a graph of its own.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("gpu_graph_id", str(next(_graph_ids)))

    def fill(self, batch: Array) -> None:
        """Take another batch of the same size; `upload` copies it."""
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
