"""Makes a record: steps in order of cost, each written as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer._version import __version__
from optimizer.artifacts import (
    Artifact,
    OutputFile,
    check_outputs,
    library_versions,
    scratch_folder,
)
from optimizer.engines import get_backend
from optimizer.engines.cuda import cuda_api, cuda_status
from optimizer.engines.onnxruntime import as_written
from optimizer.engines.opening import closing, graph_of, open_engine
from optimizer.engines.tensorrt.engine_opening import open_parts
from optimizer.engines.tensorrt.inspector import inspector_text
from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, Library
from optimizer.environment import describe
from optimizer.errors import ResnetOptError
from optimizer.gpu_record.cuda_checks import check_cuda
from optimizer.gpu_record.recorded_calls import Calls
from optimizer.gpu_record.recorded_session import drive, recorded
from optimizer.gpu_record.storage import Cleaner, RecordFile
from optimizer.profiling.conditions import Gpus
from optimizer.progress import Progress, Silent
from optimizer.verbs.audit import audit
from optimizer.verbs.build import build
from optimizer.verbs.calibrate import calibrate
from optimizer.verbs.export import export

__all__ = ["PROFILES", "record"]

ARCH, IMAGE = "resnet18:random:10", 64
PROFILES = ((1, 1, 1), (2, 4, 8))
PRECISIONS = ("fp32", "fp16", "int8")
_PROVIDERS = ("cuda", "tensorrt", "nv-tensorrt-rtx")
_LIBRARIES = (
    "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "onnxruntime-gpu", "cuda-bindings",
    "cuda-python", "pycuda", "torch", "nvidia-ml-py",
)  # fmt: skip


@dataclass(frozen=True)
class _Materials:
    """The files that the engines are built from."""

    folder: Path
    graph: Path
    statistics: Path


def record(path: Path | str, *, force: bool = False, progress: Progress | None = None) -> Path:
    """Record the behaviour of this machine's GPU libraries.

    Missing parts are recorded too: without a GPU, the record ends after the description of the machine.

    Args:
        path: The ZIP file to write.
        force: Also replace a file that resnet-opt did not write, or that was edited since.
        progress: Receives progress updates.

    Returns:
        The path of the file.

    Raises:
        UsageError: The file exists and is not a record.
        EnvironmentFault: The file cannot be written.
    """
    progress = progress or Silent()
    path = Path(path)
    file = OutputFile(path, "record", has_manifest=False, option="--record")
    check_outputs([file], force=force)
    with scratch_folder("record") as folder:
        file = RecordFile(path, Cleaner({folder: "<record>"}))
        with _step(file, "machine", progress) as entry:
            entry["version"] = __version__
            entry["environment"] = describe().model_dump(mode="json")
            entry["libraries"] = library_versions(*_LIBRARIES)
            entry["clocks"] = Gpus().read()
        if cuda_status().fault is not None:
            return path
        with _step(file, "cuda", progress) as entry:
            entry["checks"] = check_cuda(cuda_api())
        materials = None
        with _step(file, "materials", progress) as entry:
            materials = _materials(folder)
            entry["network"] = f"{ARCH}, {IMAGE} px"
        if materials is not None:
            _engines(file, materials, progress)
    return path


@contextmanager
def _step(file: RecordFile, name: str, progress: Progress) -> Iterator[dict[str, Any]]:
    """One step, which is recorded whether or not it fails."""
    progress.start(f"record {name}")
    entry: dict[str, Any] = {"status": "ok"}
    started = time.perf_counter()
    try:
        yield entry
    except ResnetOptError as error:
        entry |= {"status": "failed", "error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - unexpected errors are recorded too
        entry |= {"status": "crashed", "error": type(error).__name__, "message": str(error)}
    finally:
        entry["seconds"] = round(time.perf_counter() - started, 2)
        file.add(name.replace(" ", "-"), entry)
        progress.finish(str(entry["status"]))


def _materials(folder: Path) -> _Materials:
    graph = export(ARCH, folder / "model.onnx", image_size=IMAGE).path
    statistics = calibrate(
        graph, folder / "model.stats.npz", calib="digits:train", calib_images=32
    ).path
    return _Materials(folder, graph, statistics)


def _engines(file: RecordFile, materials: _Materials, progress: Progress) -> None:
    """Every library in every precision; FP16 first, because it builds fastest."""
    for precision in sorted(PRECISIONS, key=lambda name: name != "fp16"):
        for library in (TENSORRT, TENSORRT_RTX):
            with _step(file, f"{library.name} {precision}", progress) as entry:
                _record_tensorrt(library, precision, materials, entry)
        for provider in _PROVIDERS:
            with _step(file, f"onnxruntime {provider} {precision}", progress) as entry:
                _record_provider(provider, precision, materials, entry)


def _record_tensorrt(
    library: Library, precision: str, materials: _Materials, entry: dict[str, Any]
) -> None:
    available = get_backend(library.name).availability()
    entry["availability"] = available.reason
    if not available.can_run:
        entry["status"] = "skipped"
        return
    path = materials.folder / f"{precision}{get_backend(library.name).suffix}"
    artifact = build(
        materials.graph, path, precision=precision, engine=library.name, profile=list(PROFILES),
        stats=materials.statistics,
        target=(cuda_status().devices[0].sm,) if library.portable else None,
    )  # fmt: skip
    _record_build(artifact, entry)
    opened = open_parts(library, path, device=None, options={})
    entry["inspector without a context"] = inspector_text(opened.trt, opened.engine)
    calls = Calls()
    before = opened.log.position
    batches = [_images(best) for _, best, _ in PROFILES]
    try:
        entry["session"] = drive(recorded(opened, calls), batches)
    finally:
        entry["calls"] = calls.entries
        entry["log"] = opened.log.texts_since(before)
        entry["clocks"] = Gpus().read()
    entry["relative error"] = _relative_error(path)


def _record_provider(
    provider: str, precision: str, materials: _Materials, entry: dict[str, Any]
) -> None:
    path = materials.folder / f"{provider}-{precision}.onnx"
    artifact = build(
        materials.graph, path, precision=precision, engine="onnxruntime", provider=provider,
        stats=materials.statistics,
    )  # fmt: skip
    _record_build(artifact, entry)
    entry["relative error"] = _relative_error(path)
    with closing(open_engine(path)) as session:
        bound = session.bind(_images(4))
        bound.upload()

        def compute() -> None:
            bound.enqueue()
            bound.wait()

        entry["compute_ms"] = _milliseconds(compute)


def _record_build(artifact: Artifact, entry: dict[str, Any]) -> None:
    details = artifact.manifest.details
    entry |= {
        "build_s": details.get("build_s"),
        "notes": details.get("notes", []),
        "engine_bytes": artifact.path.stat().st_size,
        "layers": details.get("layers", []),
        "audit": audit(artifact).model_dump(mode="json", exclude={"differing"}),
    }


def _relative_error(path: Path) -> float:
    """Largest difference from the graph as written, relative to the largest logit."""
    graph = graph_of(path)
    assert graph is not None, "a build stores its graph beside the engine"
    batch = _images(8)
    expected = as_written(graph).run(batch)
    with closing(open_engine(path)) as session:
        actual = session.run(batch)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, IMAGE, IMAGE), np.float32)


def _milliseconds(call: Callable[[], object], calls: int = 20) -> Sequence[float]:
    spent = []
    for _ in range(calls):
        started = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - started) / 1e6)
    return spent
