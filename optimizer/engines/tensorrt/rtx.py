"""What only TensorRT-RTX has: named compute capabilities, and a runtime that compiles again.

An RTX engine holds no machine code yet: the runtime compiles it for the GPU at hand when an
execution context is made. Names used here are looked up in ``tensorrt_rtx`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.artifacts import write_atomically
from optimizer.engines.tensorrt.capability import sm_name
from optimizer.engines.tensorrt.library import Library
from optimizer.engines.tensorrt.options import SPECIALIZATION, check_runtime_options
from optimizer.errors import UsageError

__all__ = [
    "RuntimeOptions",
    "new_runtime_config",
    "open_runtime_cache",
    "save_runtime_cache",
    "set_targets",
]


def set_targets(trt: Any, config: Any, targets: Sequence[int]) -> None:
    """Name the compute capabilities an engine is compiled for.

    Raises:
        UsageError: The library refuses one.
    """
    config.num_compute_capabilities = len(targets)
    for index, number in enumerate(targets):
        capability = getattr(trt.ComputeCapability, sm_name(number).upper(), None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise UsageError(
                f"TensorRT-RTX {trt.__version__} does not compile for {sm_name(number)}"
            )


@dataclass(frozen=True)
class RuntimeOptions:
    """How a TensorRT-RTX engine is compiled for the GPU at hand, and run.

    Attributes:
        runtime_cache: File that keeps the compiled kernels for the next start.
        specialization: Kernels for the very shapes that run: ``eager`` compiles them before the
            first run of a shape, ``lazy`` beside the first runs (which makes them slower than
            later ones, so it is not the default here), ``none`` not at all.
        cuda_graph: Let the runtime capture the network into a CUDA graph.
    """

    runtime_cache: Path | None = None
    specialization: str = "eager"
    cuda_graph: bool = False

    @classmethod
    def read(cls, library: Library, raw: Mapping[str, Any]) -> RuntimeOptions:
        """Read options by name.

        Raises:
            UsageError: An option or a value that does not exist, or that the library lacks.
        """
        known = ("runtime_cache", "specialization", "cuda_graph")
        unknown = next((name for name in raw if name not in known), None)
        if unknown is not None:
            raise UsageError(
                f"no option {unknown!r} to load an engine", hint=f"one of {', '.join(known)}"
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
    """The cache of compiled kernels that contexts of an engine fill; ``None`` without one."""
    if options.runtime_cache is None:
        return None
    runtime_config = engine.create_runtime_config()
    runtime_cache = runtime_config.create_runtime_cache()
    if options.runtime_cache.is_file():
        # A cache of another version or GPU is refused by the library and written anew.
        runtime_cache.deserialize(options.runtime_cache.read_bytes())
    return runtime_cache


def new_runtime_config(
    trt: Any, engine: Any, options: RuntimeOptions, runtime_cache: Any, *, cuda_graph: bool
) -> Any:
    """How an execution context compiles and runs.

    Args:
        trt: The library.
        engine: The engine.
        options: When kernels are compiled for the shapes that run.
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
    """Write the kernels compiled so far."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(runtime_cache.serialize())
