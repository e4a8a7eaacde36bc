"""Makes a record: steps in order of cost, each written as soon as it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optimizer._version import __version__
from optimizer.artifacts import OutputFile, check_outputs, library_versions, scratch_folder
from optimizer.engines import get_backend
from optimizer.engines.cuda import cuda_status
from optimizer.engines.providers.status import provider_status
from optimizer.engines.providers.table import PROVIDERS
from optimizer.environment import describe
from optimizer.errors import ResnetOptError, UnsupportedPrecision
from optimizer.gpu_record.engine_steps import IMAGE
from optimizer.gpu_record.storage import Cleaner, RecordFile
from optimizer.options.engine_options import BUILT_IN
from optimizer.processes import ChildFailed, Limits, call
from optimizer.profiling.conditions import Gpus
from optimizer.progress import Progress, Silent
from optimizer.verbs.calibrate import calibrate
from optimizer.verbs.export import export
from optimizer.verbs.quantize import quantize

__all__ = ["record"]

ARCH = "resnet18:random:10"
PRECISIONS = ("fp16", "int8", "fp32", "bf16", "fp8")
"""The quickest to build and most used come first."""
SECONDS = 600.0
_LEAST_SECONDS = 60.0
_QUICK = {"method": "minmax", "bias_correction": "none"}
"""Accuracy does not matter for a network with random weights."""
_LAST_CALLS = 50
_LIBRARIES = (
    "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "onnxruntime-gpu", "cuda-bindings",
    "cuda-python", "pycuda", "torch", "nvidia-ml-py",
)  # fmt: skip


def record(
    path: Path | str,
    *,
    seconds: float = SECONDS,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Record the behaviour of this machine's GPU libraries.

    Missing parts are recorded too: without a GPU, the record ends after the description of the machine.
    Each step runs in a process of its own, so that a crash of a library is part of the record.

    Args:
        path: The ZIP file to write.
        seconds: No step begins later than this; those left out are in the record.
        force: Also replace a file that resnet-opt did not write, or that was edited since.
        progress: Receives progress updates.

    Returns:
        The path of the file.

    Raises:
        UsageError: The file exists and is not a record.
        EnvironmentFault: The file cannot be written.
    """
    progress = progress or Silent()
    path, deadline = Path(path), time.monotonic() + seconds
    output = OutputFile(path, "record", has_manifest=False, option="--record")
    check_outputs([output], force=force)
    with scratch_folder("record") as folder:
        file = RecordFile(path, Cleaner({folder: "<record>"}))
        with _step(file, "machine", progress) as entry:
            entry["version"] = __version__
            entry["environment"] = _environment()
            entry["libraries"] = library_versions(*_LIBRARIES)
            entry["clocks"] = Gpus().read()
        if cuda_status().fault is not None:
            return path
        with _step(file, "cuda", progress) as entry:
            _in_child("cuda_step", [], folder, entry, deadline)
        graphs: dict[str, Path] = {}
        with _step(file, "materials", progress) as entry:
            entry["network"] = f"{ARCH}, {IMAGE} px"
            _graphs(folder, graphs)
        _engines(file, graphs, folder, progress, deadline)
    return path


def _environment() -> dict[str, Any]:
    """`describe`, without the backends of other packages: their names may be private."""
    described = describe().model_dump(mode="json")
    backends = {n: state for n, state in described["backends"].items() if n in BUILT_IN}
    return {**described, "backends": backends}


@contextmanager
def _step(file: RecordFile, name: str, progress: Progress) -> Iterator[dict[str, Any]]:
    """One step, which is recorded whether or not it fails."""
    progress.start(f"record {name}")
    entry: dict[str, Any] = {"status": "ok"}
    started = time.perf_counter()
    try:
        yield entry
    except UnsupportedPrecision as error:
        entry |= {"status": "unsupported", "message": str(error)}
    except ChildFailed as error:
        entry |= {"status": "crashed", "error": error.reason, "message": str(error)}
        entry |= {"last lines": list(error.last_lines)}
    except ResnetOptError as error:
        entry |= {"status": "failed", "error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - unexpected errors are recorded too
        entry |= {"status": "crashed", "error": type(error).__name__, "message": str(error)}
    finally:
        entry["seconds"] = round(time.perf_counter() - started, 2)
        file.add(name.replace(" ", "-"), entry)
        progress.finish(str(entry["status"]))


def _graphs(folder: Path, graphs: dict[str, Path]) -> None:
    """Write a graph for each precision, and add it to ``graphs``."""
    graph = export(ARCH, folder / "fp32.onnx", image_size=IMAGE).path
    statistics = calibrate(
        graph, folder / "model.stats.npz", calib="digits:train", calib_images=8
    ).path
    for precision in PRECISIONS:
        path = folder / f"{precision}.onnx"
        if precision != "fp32":
            more = _QUICK if precision == "int8" else {}
            quantize(
                graph, path, precision=precision, target="tensorrt", stats=str(statistics), **more
            )
        graphs[precision] = path


def _engines(
    file: RecordFile, graphs: dict[str, Path], folder: Path, progress: Progress, deadline: float
) -> None:
    """Every library in every precision."""
    for precision in (name for name in PRECISIONS if name in graphs):
        graph = graphs[precision]
        for library in ("tensorrt", "tensorrt-rtx"):
            with _step(file, f"{library} {precision}", progress) as entry:
                available = get_backend(library).availability()
                entry["availability"] = available.reason
                if _begins(available.can_run, entry, deadline):
                    _in_child("tensorrt_step", [library, precision, graph], folder, entry, deadline)
        for provider in (provider for provider in PROVIDERS.values() if provider.on_gpu):
            with _step(file, f"onnxruntime {provider.name} {precision}", progress) as entry:
                status = provider_status(provider)
                entry["availability"] = status.reason
                if _begins(status.usable, entry, deadline):
                    arguments = [provider.name, precision, graph]
                    _in_child("provider_step", arguments, folder, entry, deadline)


def _begins(available: bool, entry: dict[str, Any], deadline: float) -> bool:
    """Whether a step begins; otherwise ``entry`` says why it does not."""
    if available and time.monotonic() < deadline:
        return True
    entry["status"] = "skipped"
    if available:
        entry["message"] = "the time for the record is up"
    return False


def _in_child(
    step: str, arguments: Sequence[Any], folder: Path, entry: dict[str, Any], deadline: float
) -> None:
    """Run a step in a process of its own, and add what it recorded to ``entry``, even if it dies."""
    with scratch_folder("step", folder) as own:
        partial = own / "step.json"
        seconds = max(_LEAST_SECONDS, deadline - time.monotonic())
        try:
            entry |= call(
                f"optimizer.gpu_record.engine_steps:{step}",
                [partial, *arguments],
                limits=Limits(seconds=seconds),
            )
        except Exception:
            with suppress(OSError, ValueError):
                entry |= json.loads(partial.read_text(encoding="utf-8"))
            with suppress(OSError):
                lines = partial.with_suffix(".calls").read_text(encoding="utf-8").splitlines()
                entry["last calls"] = lines[-_LAST_CALLS:]
            raise
