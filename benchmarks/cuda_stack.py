"""What a GPU does without TensorRT: CUDA, ONNX Runtime's CUDA provider, PyTorch, all side by side.

For machines that have PyTorch and onnxruntime-gpu only, such as an H200. The materials are made beforehand,
on any machine; with them, everything takes at most ten minutes on the GPU::

    python benchmarks/cuda_stack.py --prepare FOLDER
    python benchmarks/cuda_stack.py FOLDER --write        # on the GPU, into reports/gpu/<device>/

Each step runs in a process of its own, and its result is written as soon as it ends: what fails, crashes or
takes too long is recorded, and the rest still runs.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import gpu_report
import numpy as np

import optimizer
from optimizer.artifacts import library_versions, read_manifest, write_text_atomically
from optimizer.engines.cuda import DeviceBuffer, PinnedBuffer, Stream, cuda_api, cuda_status
from optimizer.engines.cuda_bindings import CudaApi
from optimizer.engines.onnxruntime import as_written
from optimizer.engines.opening import closing
from optimizer.environment import gpus
from optimizer.errors import ResnetOptError
from optimizer.gpu_record.cuda_checks import check_cuda
from optimizer.graphs.facts import graph_facts
from optimizer.targets.hardware import cpu_features

__all__ = ["BATCHES", "STEPS", "Place", "collect", "markdown", "prepare"]

BATCHES = (1, 32)
BASELINES = ("torch-fp16", "torch-compile")
SECONDS = 540.0
_LEAST_SECONDS = 20.0
_CALLS, _WARM_UP = 30, 10
BENCH_SECONDS = 2.0
_LIBRARIES = (
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "cuda-python",
    "cuda-bindings",
    "nvidia-ml-py",
)
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Place:
    """Where the steps run.

    Attributes:
        folder: The prepared materials.
        device: The GPU; ``cpu`` runs the same steps without one, as far as they go.
    """

    folder: Path
    device: str = "cuda:0"

    @property
    def on_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.device != "cpu"

    @property
    def checkpoint(self) -> Path:
        """The network's weights."""
        return self.folder / "model.safetensors"

    def graph(self, precision: str) -> Path:
        """The network as a graph."""
        return self.folder / f"{precision}.onnx"

    def images(self, batch: int) -> np.ndarray:
        """Seeded random images of the network's size."""
        size = graph_facts(self.graph("fp32")).image_size or 224
        return np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)


def prepare(folder: Path, arch: str = "resnet50:random", image_size: int = 224) -> None:
    """Make the materials: a checkpoint, and its graph in FP32 and FP16."""
    from optimizer.models import load_model, save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder)
    save_checkpoint(load_model(arch, image_size=image_size), place.checkpoint, details={})
    optimizer.export(str(place.checkpoint), place.graph("fp32"))
    optimizer.quantize(
        place.graph("fp32"), place.graph("fp16"), precision="fp16", target="tensorrt"
    )


# --- steps: each returns what it measured ---------------------------------------------------------------


def cuda_step(place: Place) -> dict[str, Any]:
    """The CUDA layer: memory, copies, events, capture, out of memory, two threads."""
    index = int(place.device.partition(":")[2] or 0)
    result = {"package": cuda_status().package, "checks": check_cuda(cuda_api(), index)}
    try:
        return {**result, "copies": copies(cuda_api(), index)}
    except ResnetOptError as error:
        return {**result, "error": str(error)}


def copies(api: CudaApi, index: int) -> list[dict[str, Any]]:
    """Copies to the GPU from page-locked memory and from ordinary memory, in milliseconds."""
    api.set_device(index)
    rows = []
    for images in BATCHES:
        size = images * 3 * 224 * 224 * 4
        ordinary = ctypes.create_string_buffer(size)
        with (
            Stream(api=api) as stream,
            PinnedBuffer(size, api=api) as pinned,
            DeviceBuffer(size, api=api) as target,
        ):
            sources = {"page-locked": pinned.handle, "ordinary": ctypes.addressof(ordinary)}
            for name, address in sources.items():
                ms = _median_ms(partial(_copy, stream, target, address))
                rows.append({"memory": name, "bytes": size, "ms": ms, "gb_per_s": size / ms / 1e6})
    return rows


def _copy(stream: Stream, target: DeviceBuffer, address: int) -> None:
    stream.api.to_device(target.handle, address, target.size, stream.handle)
    stream.synchronize()


def onnxruntime_step(place: Place) -> dict[str, Any]:
    """ONNX Runtime's CUDA provider: placement, accuracy, CUDA graphs, and its spans against events."""
    rows = []
    for precision in ("fp32", "fp16"):
        for with_graph in (False, True):
            row: dict[str, Any] = {"precision": precision, "cuda_graph": with_graph}
            rows.append(row)
            try:
                row |= _provider(place, precision, cuda_graph=with_graph)
            except Exception as error:  # noqa: BLE001 - recorded, and the others still run
                row["error"] = f"{type(error).__name__}: {error}"
    return {"engines": rows}


def _provider(place: Place, precision: str, *, cuda_graph: bool) -> dict[str, Any]:
    if not place.on_gpu and (precision != "fp32" or cuda_graph):
        raise RuntimeError("the CPU provider has FP32 only, and no CUDA graphs")
    path = _engine(place, precision, cuda_graph=cuda_graph)
    details = read_manifest(path).details
    convolutions = [
        layer for layer in details["layers"] if layer["type"].startswith(("Conv", "Fused"))
    ]
    result: dict[str, Any] = {
        "notes": details.get("notes", []),
        "convolutions": len(convolutions),
        "audit": optimizer.audit(path).model_dump(mode="json", exclude={"differing"}),
        "spans": [],
    }
    batch = place.images(8)
    expected = as_written(place.graph(precision)).run(batch)
    with closing(_open(path, place)) as session:
        actual = session.run(batch)
        result["relative_error"] = float(np.abs(actual - expected).max() / np.abs(expected).max())
        for images in BATCHES:
            bound = session.bind(place.images(images))
            bound.upload()

            def compute() -> None:
                bound.enqueue()  # noqa: B023 - called in this iteration only
                bound.wait()  # noqa: B023

            ours = _median_ms(compute)
            by_events = _median_ms_by_events(compute) if place.on_gpu else None
            bound.download()
            result["spans"].append({"batch": images, "ms": ours, "ms_by_events": by_events})
    return result


def _engine(place: Place, precision: str, *, cuda_graph: bool = False) -> Path:
    """An engine for ONNX Runtime; built once."""
    path = place.folder / f"engine-{precision}{'-graph' if cuda_graph else ''}.onnx"
    options = {"provider_options": {"enable_cuda_graph": "1"}} if cuda_graph else {}
    optimizer.build(
        place.graph(precision), path, precision=precision, engine="onnxruntime",
        provider="cuda" if place.on_gpu else "cpu", **options,
    )  # fmt: skip
    return path


def _open(path: Path, place: Place) -> Any:
    return optimizer.load(path, device=place.device if place.on_gpu else None)


def torch_step(place: Place) -> dict[str, Any]:
    """PyTorch: memory layout x TF32 x cuDNN's autotuner, at each batch."""
    import torch

    from optimizer.models import load_model

    device = torch.device(place.device)
    module = load_model(str(place.checkpoint)).module.to(device).eval()
    rows = []
    for layout, tf32, tuned in itertools.product(("NCHW", "NHWC"), (False, True), (False, True)):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = tuned
        memory = torch.channels_last if layout == "NHWC" else torch.contiguous_format
        placed = module.to(memory_format=memory)
        for images in BATCHES:
            batch = torch.from_numpy(place.images(images)).to(device)
            batch = batch.contiguous(memory_format=memory)

            def compute() -> None:
                with torch.inference_mode():
                    placed(batch)  # noqa: B023 - called in this iteration only
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            row = {"layout": layout, "tf32": tf32, "benchmark": tuned, "batch": images}
            rows.append({**row, "ms": _median_ms(compute)})
    return {"settings": rows, "device": str(device)}


def bench_step(place: Place) -> dict[str, Any]:
    """All engines and PyTorch side by side: speed, memory, energy, clocks."""
    paths, errors = _engines(place)
    return {"bench": _bench([place.checkpoint, *paths], place), "not_built": errors}


def variants_step(place: Place) -> dict[str, Any]:
    """The other baselines: half-precision PyTorch and ``torch.compile``, at batch 1."""
    paths, errors = _engines(place)
    results = {}
    for baseline in BASELINES:
        try:
            results[baseline] = _bench(
                [place.checkpoint, *paths], place, batch=(1,), against=baseline
            )
        except Exception as error:  # noqa: BLE001 - recorded, and the other still runs
            results[baseline] = {"error": f"{type(error).__name__}: {error}"}
    return {"variants": results, "not_built": errors}


def _engines(place: Place) -> tuple[list[Path], dict[str, str]]:
    """The engines that can be built here, and the reasons for the others."""
    paths, errors = [], {}
    for precision in ("fp32", "fp16") if place.on_gpu else ("fp32",):
        try:
            paths.append(_engine(place, precision))
        except ResnetOptError as error:
            errors[precision] = str(error)
    return paths, errors


def _bench(paths: list[Path], place: Place, **options: Any) -> dict[str, Any]:
    result = optimizer.bench(
        paths,
        duration=f"{BENCH_SECONDS}s",
        device=place.device if place.on_gpu else None,
        **{"batch": BATCHES, **options},
    ).model_dump(mode="json")
    for engine in result["engines"]:
        engine["raw_file"] = None
    return result


STEPS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "cuda": cuda_step,
    "onnxruntime": onnxruntime_step,
    "torch": torch_step,
    "bench": bench_step,
    "variants": variants_step,
}
"""Cheapest first."""


def _median_ms(call: Callable[[], object]) -> float:
    for _ in range(_WARM_UP):
        call()
    spent = []
    for _ in range(_CALLS):
        started = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - started) / 1e6)
    return statistics.median(spent)


def _median_ms_by_events(call: Callable[[], object]) -> float:
    """The same call between two of PyTorch's events, with the device idle before and after."""
    import torch

    cuda: Any = torch.cuda  # its events are not typed
    spent = []
    for _ in range(_CALLS):
        start, stop = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize()
        start.record()
        call()
        stop.record()
        cuda.synchronize()
        spent.append(float(start.elapsed_time(stop)))
    return statistics.median(spent)


# --- running them -----------------------------------------------------------------------------------------


def collect(
    place: Place, seconds: float, write: Callable[[dict[str, Any]], object], steps: list[str]
) -> dict[str, Any]:
    """Run the steps, each in its own process, and pass all results so far to ``write`` after each."""
    deadline = time.monotonic() + seconds
    results: dict[str, Any] = {
        "kind": "cuda-stack",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device(place),
        "libraries": library_versions(*_LIBRARIES),
        "steps": {},
    }
    for name in steps:
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            results["steps"][name] = {"status": "skipped", "error": f"{seconds:.0f} s are over"}
        else:
            print(f"{name} ...", flush=True)
            results["steps"][name] = _run_step(name, place, left)
            print(f"{name}: {results['steps'][name]['status']}", flush=True)
        write(results)
    return results


def _run_step(name: str, place: Place, seconds: float) -> dict[str, Any]:
    """The result of a step, or why there is none."""
    started = time.monotonic()
    with _result_file() as path:
        command = [sys.executable, __file__, str(place.folder), "--device", place.device]
        command += ["--step", name, "--result", str(path)]
        try:
            done = subprocess.run(
                command, timeout=seconds, check=False, stderr=subprocess.PIPE, text=True
            )
            tail = done.stderr.strip().splitlines()[-8:]
            error = None if done.returncode == 0 else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            tail, error = [], f"not done after {seconds:.0f} s"
        spent = round(time.monotonic() - started, 1)
        if error is not None:
            return {"status": "failed", "seconds": spent, "error": error, "last_lines": tail}
        found = json.loads(path.read_text(encoding="utf-8"))
        status = "failed" if "error" in found else "ok"
        return {"status": status, "seconds": spent, **found}


@contextmanager
def _result_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "result.json"


def _device(place: Place) -> dict[str, Any]:
    status = cuda_status()
    if not place.on_gpu or not status.devices:
        return {"name": cpu_features().model}
    gpu = status.devices[int(place.device.partition(":")[2] or 0)]
    return {
        "name": gpu.name, "capability": gpu.sm, "cuda": status.driver,
        "memory_gib": None if gpu.memory_bytes is None else gpu.memory_bytes >> 30,
        "driver": next((listed.driver for listed in gpus()), None),
    }  # fmt: skip


# --- the report -------------------------------------------------------------------------------------------


def markdown(results: dict[str, Any]) -> str:
    """The report in Markdown."""
    device, steps = results["device"], results["steps"]
    facts = [f"{k} {v}" for k, v in device.items() if k != "name" and v is not None]
    facts += [f"{name} {version}" for name, version in results["libraries"].items()]
    lines = [f"# {device['name']} without TensorRT", "", ", ".join(facts) + ".", ""]
    lines += [f"`python benchmarks/cuda_stack.py FOLDER --write`, {results['created']}.", ""]
    tables = (
        ("Copies to the GPU", "cuda", "copies"),
        ("ONNX Runtime", "onnxruntime", "engines"),
        ("PyTorch", "torch", "settings"),
    )
    for title, step, rows in tables:
        lines += _table(title, [_flat(row) for row in steps.get(step, {}).get(rows, [])])
    lines += _table("Side by side", _bench_rows(steps.get("bench", {}).get("bench")))
    for name, result in steps.get("variants", {}).get("variants", {}).items():
        lines += _table(f"Against {name}", _bench_rows(result))
    lines += _table(
        "Steps",
        [
            {"step": name, "status": step["status"], "seconds": step.get("seconds", ""),
             "error": step.get("error", "")}
            for name, step in steps.items()
        ],
    )  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of one level; spans by batch, the audit by its verdict."""
    flat = {k: v for k, v in row.items() if k not in {"spans", "audit", "notes"}}
    if "audit" in row:
        flat["audit"] = row["audit"]["verdict"]
    for span in row.get("spans", []):
        flat[f"ms at batch {span['batch']}"] = span["ms"]
        flat[f"by events at batch {span['batch']}"] = span["ms_by_events"]
    return flat


def _bench_rows(result: dict[str, Any] | None) -> list[dict[str, Any]]:
    if result is None:
        return []
    if "engines" not in result:
        return [{"error": result.get("error")}]
    return [
        {
            "engine": engine["name"], "batch": engine["batch"], "status": engine["status"],
            "images/s": engine.get("images_per_s"),
            "p50, ms": (engine.get("latency_ms") or {}).get("p50"),
            "GPU memory, MB": (engine.get("gpu_memory_bytes") or 0) / 1e6 or None,
            "error": engine.get("error"),
        }
        for engine in result["engines"]
    ]  # fmt: skip


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    head = list(dict.fromkeys(name for row in rows for name in row))
    body = ["| " + " | ".join(_cell(row.get(name)) for name in head) + " |" for row in rows]
    return [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body, ""]


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "/")


def main() -> int:
    """Prepare, run one step, or run all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the prepared materials")
    parser.add_argument("--prepare", action="store_true", help="make the materials, without a GPU")
    parser.add_argument(
        "--device", default="cuda:0", help="the GPU; cpu tries the steps without one"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all steps")
    parser.add_argument("--write", action="store_true", help="write into reports/gpu/<device>/")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    place = Place(options.folder.resolve(), options.device)
    if options.prepare:
        prepare(place.folder)
        return 0
    if not place.graph("fp16").is_file():
        parser.error(f"{options.folder} has no materials: run it with --prepare first")
    if options.step is not None:
        result = STEPS[options.step](place)
        options.result.write_text(json.dumps(result), encoding="utf-8")
        return 0
    target = ROOT / "reports" / "gpu" if options.write else place.folder
    results = collect(place, options.seconds, lambda so_far: _write(so_far, target), list(STEPS))
    print(markdown(results))
    return int(any(step["status"] != "ok" for step in results["steps"].values()))


def _write(results: dict[str, Any], parent: Path) -> None:
    folder = parent / gpu_report.slug(results["device"]["name"])
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / "stack.json", json.dumps(results, indent=2) + "\n")
    write_text_atomically(folder / "stack.md", markdown(results))


if __name__ == "__main__":
    raise SystemExit(main())
