"""The steps of a record that use GPU libraries, each run in a process of its own.

A library that crashes, hangs or loses the GPU ends its step only, and libraries that exist in two versions
(ONNX Runtime's provider links TensorRT 10 beside an installed TensorRT 11) do not meet in one process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts import write_text_atomically
from optimizer.engines.cuda import cuda_api, cuda_status
from optimizer.engines.onnxruntime import as_written
from optimizer.engines.opening import closing, open_engine
from optimizer.engines.protocol import BuildSettings, Built, Session
from optimizer.engines.registry import get_backend
from optimizer.engines.tensorrt.engine_opening import open_parts
from optimizer.engines.tensorrt.inspector import inspector_text
from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, load
from optimizer.engines.tensorrt.log import BuildLog, make_logger
from optimizer.errors import ResnetOptError
from optimizer.evaluation import audit as audit_layers
from optimizer.gpu_record.cuda_checks import check_cuda
from optimizer.gpu_record.recorded_calls import Calls
from optimizer.gpu_record.recorded_session import drive, recorded
from optimizer.profiling.conditions import Gpus
from optimizer.progress import Silent
from optimizer.verbs.audit import audit
from optimizer.verbs.build import build

__all__ = ["IMAGE", "PROFILES", "Entry", "cuda_step", "images", "provider_step", "tensorrt_step"]

IMAGE = 64
PROFILES = ((1, 1, 1), (2, 4, 8))
_LIBRARIES = {library.name: library for library in (TENSORRT, TENSORRT_RTX)}


@dataclass
class Entry:
    """What a step has recorded so far, written to a file each time, in case the process dies.

    Args:
        path: The file.
    """

    path: Path
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        """Record values, under their names with spaces."""
        self.values |= {name.replace("_", " "): value for name, value in values.items()}
        write_text_atomically(self.path, json.dumps(self.values))


def cuda_step(partial: Path) -> dict[str, Any]:
    """Check the CUDA layer."""
    entry = Entry(partial)
    entry.add(checks=check_cuda(cuda_api()))
    return entry.values


def tensorrt_step(partial: Path, name: str, precision: str, graph: Path) -> dict[str, Any]:
    """Build an engine with TensorRT or TensorRT-RTX, inspect it and use a session.

    Args:
        partial: File for what is recorded so far; calls go into ``<partial>.calls``.
        name: Name of the backend.
        precision: The precision of the graph.
        graph: The graph.
    """
    entry, library, backend = Entry(partial), _LIBRARIES[name], get_backend(name)
    log = BuildLog()
    make_logger(load(library), log)
    path = partial.with_name(f"engine{backend.suffix}")
    gpus = cuda_status().devices if library.portable else ()
    settings = BuildSettings(
        precision=precision,
        profile=PROFILES[0],
        targets=tuple(gpu.sm for gpu in gpus[:1]),
        options={"profiles": list(PROFILES[1:])},
    )
    try:
        built = backend.build(graph, path, settings, Silent())
    finally:
        entry.add(build_log=log.texts_since(0))
    entry.add(**_facts(built, path, precision))
    opened = open_parts(library, path, device=None, options={})
    entry.add(inspector_without_a_context=inspector_text(opened.trt, opened.engine))
    before = opened.log.position
    with partial.with_suffix(".calls").open("w", encoding="utf-8") as stream:
        calls = Calls(stream=stream)
        try:
            entry.add(session=drive(recorded(opened, calls), [images(b) for _, b, _ in PROFILES]))
        finally:
            entry.add(calls=calls.entries, log=opened.log.texts_since(before), clocks=Gpus().read())
    with closing(backend.load(path)) as session:
        entry.add(relative_error=_relative_error(session, graph))
    return entry.values


def provider_step(partial: Path, provider: str, precision: str, graph: Path) -> dict[str, Any]:
    """Build and run an engine with a provider of ONNX Runtime; see `tensorrt_step`."""
    entry = Entry(partial)
    path = partial.with_name("engine.onnx")
    artifact = build(graph, path, precision=precision, engine="onnxruntime", provider=provider)
    details = artifact.manifest.details
    entry.add(
        build_s=details.get("build_s"),
        notes=details.get("notes", []),
        layers=details.get("layers", []),
        audit=audit(artifact).model_dump(mode="json", exclude={"differing"}),
    )
    with closing(open_engine(path)) as session:
        entry.add(relative_error=_relative_error(session, graph))
        bound = session.bind(images(4))
        bound.upload()

        def compute() -> None:
            bound.enqueue()
            bound.wait()

        entry.add(compute_ms=_milliseconds(compute), clocks=Gpus().read())
    return entry.values


def images(count: int) -> np.ndarray:
    """Seeded random images."""
    return np.random.default_rng(0).standard_normal((count, 3, IMAGE, IMAGE), np.float32)


def _facts(built: Built, path: Path, precision: str) -> dict[str, Any]:
    return {
        "build_s": built.seconds,
        "notes": built.notes,
        "engine_bytes": path.stat().st_size,
        "layers": [layer.model_dump(mode="json", exclude_defaults=True) for layer in built.layers],
        "audit": audit_layers(precision, built.layers).model_dump(
            mode="json", exclude={"differing"}
        ),
    }


def _relative_error(session: Session, graph: Path) -> float:
    """Largest difference from the graph as written, relative to the largest logit.

    Raises:
        ResnetOptError: An output is not finite.
    """
    batch = images(8)
    expected, actual = as_written(graph).run(batch), session.run(batch)
    if not np.all(np.isfinite(actual)):
        raise ResnetOptError("the outputs are not finite")
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _milliseconds(call: Callable[[], object], calls: int = 20) -> Sequence[float]:
    spent = []
    for _ in range(calls):
        started = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - started) / 1e6)
    return spent
