"""Features that only TensorRT-RTX has: target compute capabilities, and compilation at run time.

An RTX engine contains no machine code: the runtime compiles it for the present GPU when an execution
context is created. The names used here are looked up in ``tensorrt_rtx`` only.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.artifacts import DisabledCache, OutputFile, Plan, check_outputs, produce
from optimizer.engines.tensorrt.capability import sm_name
from optimizer.engines.tensorrt.library import Library, compute_capability
from optimizer.engines.tensorrt.options import SPECIALIZATION, check_runtime_options
from optimizer.errors import ResnetOptError, UsageError

__all__ = [
    "RUNTIME_CACHE",
    "RuntimeOptions",
    "new_runtime_config",
    "open_runtime_cache",
    "save_runtime_cache",
    "set_targets",
]

_log = logging.getLogger(__name__)
RUNTIME_CACHE = "kernels"
"""Kind of a runtime cache in its manifest."""


def set_targets(trt: Any, config: Any, targets: Sequence[int]) -> None:
    """Set the compute capabilities an engine is compiled for.

    Raises:
        UsageError: The library does not support one.
    """
    config.num_compute_capabilities = len(targets)
    for index, number in enumerate(targets):
        capability = compute_capability(trt, sm_name(number))
        if capability is None or not config.set_compute_capability(capability, index):
            raise UsageError(
                f"TensorRT-RTX {trt.__version__} does not compile for {sm_name(number)}"
            )


@dataclass(frozen=True)
class RuntimeOptions:
    """How a TensorRT-RTX engine is compiled for the present GPU, and run.

    Attributes:
        runtime_cache: File that stores the compiled kernels for the next start.
        specialization: Kernels for the exact shapes that run: ``eager`` compiles them before the
            first run of a shape, ``lazy`` during the first runs (which are slower then, so it is not
            the default here), ``none`` not at all.
        cuda_graph: Let the runtime capture the network into a CUDA graph.
    """

    runtime_cache: Path | None = None
    specialization: str = "eager"
    cuda_graph: bool = False

    @classmethod
    def read(cls, library: Library, raw: Mapping[str, Any]) -> RuntimeOptions:
        """Read options by name.

        Raises:
            UsageError: An option or a value does not exist, or the library does not support it.
        """
        names = ("runtime_cache", "specialization", "cuda_graph")
        unknown = next((name for name in raw if name not in names), None)
        if unknown is not None:
            raise UsageError(
                f"no option {unknown!r} to load an engine", hint=f"one of {', '.join(names)}"
            )
        check_runtime_options(library, raw.get("specialization"), raw.get("runtime_cache"))
        options = cls(**raw)
        if options.specialization not in SPECIALIZATION:
            raise UsageError(
                f"specialization {options.specialization!r}",
                hint=f"one of {', '.join(SPECIALIZATION)}",
            )
        return options


def open_runtime_cache(engine: Any, options: RuntimeOptions) -> Any:
    """The cache for the kernels of an engine's contexts; ``None`` if none is configured."""
    if options.runtime_cache is None:
        return None
    runtime_config = engine.create_runtime_config()
    runtime_cache = runtime_config.create_runtime_cache()
    if options.runtime_cache.is_file():
        # The library rejects what is no cache, or one of another version or GPU.
        runtime_cache.deserialize(options.runtime_cache.read_bytes())
    return runtime_cache


def new_runtime_config(
    trt: Any, engine: Any, options: RuntimeOptions, runtime_cache: Any, *, cuda_graph: bool
) -> Any:
    """The runtime configuration of an execution context.

    Args:
        trt: The library.
        engine: The engine.
        options: When to compile kernels for the shapes that run.
        runtime_cache: From `open_runtime_cache`.
        cuda_graph: Whether the runtime captures the network into a CUDA graph.
    """
    runtime_config = engine.create_runtime_config()
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    runtime_config.dynamic_shapes_kernel_specialization_strategy = {
        "eager": strategy.EAGER,
        "lazy": strategy.LAZY,
        "none": strategy.NONE,
    }[options.specialization]
    if cuda_graph:
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    if runtime_cache is not None:
        runtime_config.set_runtime_cache(runtime_cache)
    return runtime_config


def save_runtime_cache(runtime_cache: Any, path: Path) -> None:
    """Write the kernels compiled so far, with a manifest, by which the next session may replace them.

    A file of somebody else stays, and a folder that cannot be written is no reason to fail: closing a
    session loses at most the kernels.
    """
    kernels = bytes(runtime_cache.serialize())

    def write(temporary: Path) -> dict[str, Any]:
        temporary.write_bytes(kernels)
        return {}

    plan = Plan(kind=RUNTIME_CACHE, settings={"kernels": hashlib.sha256(kernels).hexdigest()})
    try:
        check_outputs([OutputFile(path, RUNTIME_CACHE, option="--runtime-cache")])
        produce(plan, path, write, cache=DisabledCache())
    except ResnetOptError as error:
        _log.warning("the compiled kernels are not kept: %s", error.message)
