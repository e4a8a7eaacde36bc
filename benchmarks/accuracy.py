"""Cost of a validation: time, memory, and decoding compared with PyTorch's DataLoader.

    python benchmarks/accuracy.py [--images 256 1024] [--rounds 9]

ResNet-50 at 224 px, two cores, chain: PyTorch, FP32 ONNX, INT8 graph as written, INT8 OpenVINO.
Writes ``reports/accuracy/validate.json`` and ``validate.md``. Exits with code 1 if a target is
certainly missed.

The images are random crops (fixed seed) of the two photographs bundled with scikit-learn, resized to
500 x 375 and saved as JPEGs of about 110 kB, the usual size in ImageNet. Weights are random and labels
arbitrary: this measures the cost of validating, not its result.

Memory is the sum of the peak resident set (the kernel's VmHWM) of the command and all its processes.
This is an upper bound: the peaks need not coincide, and shared pages count once per process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import optimizer
from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.data import Preprocessing, open_dataset
from optimizer.data.imagenet import IMAGENET_SYNSETS
from optimizer.environment import fingerprint
from optimizer.results import ValidateResult, read_result

OUTPUT = Path(__file__).parent.parent / "reports" / "accuracy"
CORES = 2
BATCH = 32
CLASSES = IMAGENET_SYNSETS[:20]
WALL_TARGET = 1.05
MEMORY_TARGET = int(1.5 * 2**30)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def make_images(folder: Path, count: int, seed: int = 0) -> float:
    """Write ``count`` JPEGs in ImageFolder layout; the same for the same seed.

    Returns:
        Their mean size in bytes.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.RandomState(seed)
    sizes = []
    for index in range(count):
        side = random.uniform(0.8, 1.0)
        width, height = int(569 * side), int(427 * side)
        x, y = random.randint(0, 641 - width), random.randint(0, 428 - height)
        piece = photos[index % 2].crop((x, y, x + width, y + height))
        path = folder / CLASSES[index % len(CLASSES)] / f"{index:06d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        piece.resize((500, 375), Image.Resampling.LANCZOS).save(path, quality=98)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


# --- validation ----------------------------------------------------------------------------------


def make_engine(folder: Path, images: Path) -> tuple[Path, Path]:
    """Make a ResNet-50 as FP32 ONNX and as an INT8 engine calibrated on 32 of the images."""
    model, engine = folder / "model.onnx", folder / "int8.blob"
    optimizer.export("resnet50:random", model)
    optimizer.build(
        model, engine, precision="int8", engine="openvino", calib=str(images), calib_images=32
    )
    return model, engine


def validate(engine: Path, images: Path, result: Path) -> dict[str, Any]:
    """Run the command as a user would, and measure its resources."""
    command = [
        sys.executable, "-m", "optimizer", "validate", str(engine), "--reference",
        "resnet50:random", "--data", str(images), "--workers", str(CORES), "--max-drop", "100pp",
        "--batch", str(BATCH), "-o", str(result), "--json",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in _THREADS}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        peaks |= _peaks(process.pid)
        time.sleep(0.1)
    command_s = time.perf_counter() - started
    validation = read_result(result)
    assert isinstance(validation, ValidateResult)
    assert validation.timing is not None
    if validation.verdict != "pass":
        raise SystemExit(f"the verdict is {validation.verdict}: {validation.finding}")
    timing = validation.timing
    pass_cpu_s = timing.decoding_cpu_s + sum(timing.hops_cpu_s.values())
    cpu_s = pass_cpu_s + timing.consistency_cpu_s
    return {
        "images": validation.dataset.n,
        "command_s": command_s,
        **timing.model_dump(),
        "ideal_s": cpu_s / CORES,
        "ratio": timing.wall_s / (cpu_s / CORES),
        "pass_ratio": timing.pass_s / (pass_cpu_s / CORES),
        "peak_bytes": sum(peaks.values()),
        "peak_bytes_of_each_process": list(peaks.values()),
        "hops": [{"name": hop.name, "executor": hop.executor} for hop in validation.hops],
    }


def _peaks(pid: int) -> dict[int, int]:
    """Peak resident set so far in bytes, of a process and its descendants, by process id."""
    peaks: dict[int, int] = {}
    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            # A forked child shows the memory of its parent until `exec`.
            if process.pid != pid and process.cmdline() == root.cmdline():
                continue
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            match = re.search(r"VmHWM:\s+(\d+) kB", status)
            if match is not None:  # absent for a process that has just ended
                peaks[process.pid] = int(match[1]) * 1024
    return peaks


# --- decoding ------------------------------------------------------------------------------------


def ours(images: Path, workers: int) -> Iterator[int]:
    """Yield batch sizes while reading float32 normalized images as `validate` does."""
    dataset = open_dataset(images, workers=workers)
    for batch in dataset.batches(BATCH, Preprocessing.imagenet()):
        yield len(batch.images)


def theirs(images: Path, workers: int) -> Iterator[int]:
    """The same with torchvision's ImageFolder and PyTorch's DataLoader, with default settings."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    preprocessing = Preprocessing.imagenet()
    pipeline = transforms.Compose([
        transforms.Resize(preprocessing.resize),
        transforms.CenterCrop(preprocessing.crop),
        transforms.ToTensor(),
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ])  # fmt: skip
    dataset = ImageFolder(str(images), pipeline)
    for tensors, _ in DataLoader(dataset, batch_size=BATCH, num_workers=workers):
        yield len(tensors)


def rate(batches: Iterator[int], workers: int) -> tuple[float, float]:
    """Images per second once all workers are busy, and over the whole pass including the start.

    The first rate is measured after as many batches as there are workers: each DataLoader worker
    makes one batch, so their first batches arrive together.
    """
    started = steady = time.perf_counter()
    counted = total = 0
    for index, count in enumerate(batches, start=1):
        total += count
        if index <= workers:
            steady = time.perf_counter()
        else:
            counted += count
    ended = time.perf_counter()
    return counted / (ended - steady), total / (ended - started)


def compare(images: Path, workers: int, rounds: int) -> dict[str, Any]:
    """Compare both readers, interleaved in random order; 95 % interval of the ratio."""
    random = np.random.RandomState(workers)
    readers = {"resnet-opt": ours, "DataLoader": theirs}
    for reader in readers.values():
        rate(reader(images, workers), workers)  # warms the page cache and imports
    steady: dict[str, list[float]] = {name: [] for name in readers}
    whole: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name in random.permutation(list(readers)):
            steady_rate, whole_rate = rate(readers[name](images, workers), workers)
            steady[name].append(steady_rate)
            whole[name].append(whole_rate)
    return {
        "workers": workers,
        "rounds": rounds,
        "images": len(open_dataset(images)),
        "images_per_s": steady,
        "images_per_s_start_included": whole,
        "ratio": _ratio(steady["resnet-opt"], steady["DataLoader"]),
        "ratio_start_included": _ratio(whole["resnet-opt"], whole["DataLoader"]),
    }


def _ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """Geometric mean of paired ratios, with Student's t interval of the logarithm."""
    from scipy.stats import t

    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    middle = statistics.mean(logs)
    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {
        "ratio": math.exp(middle),
        "low": math.exp(middle - half),
        "high": math.exp(middle + half),
    }


# --- the report ----------------------------------------------------------------------------------


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    """Whether each target was reached: ``yes``, ``no`` or ``cannot tell``."""
    runs = report["validations"]
    slow = any(pair["ratio"]["high"] < 1 for pair in report["decoding"])
    fast = all(pair["ratio"]["low"] >= 1 for pair in report["decoding"])
    answers = {True: "yes", False: "no"}
    return {
        f"wall time at most {WALL_TARGET} x CPU time / cores": answers[
            runs[-1]["ratio"] <= WALL_TARGET
        ],
        "peak memory at most 1.5 GiB": answers[max(r["peak_bytes"] for r in runs) <= MEMORY_TARGET],
        "decoding at least as fast as DataLoader": "no"
        if slow
        else "yes"
        if fast
        else "cannot tell",
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# What a validation costs",
        "",
        (
            f"{report['device']['cpu']}, {CORES} cores. ResNet-50, 224 px, batches of {BATCH}; "
            f"JPEGs of 500 x 375, {report['mean_bytes'] / 1e3:.0f} kB on average: pieces of "
            "scikit-learn's two photographs."
        ),
        "",
        (
            "| images | wall, s | decoding, CPU s | engines, CPU s | wall / (CPU / cores) "
            "| the pass alone | waiting for images, s | peak memory, MiB |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in report["validations"]:
        engines = sum(run["hops_cpu_s"].values()) + run["consistency_cpu_s"]
        lines.append(
            f"| {run['images']:,} | {run['wall_s']:.1f} | {run['decoding_cpu_s']:.1f} "
            f"| {engines:.1f} | {run['ratio']:.3f} | {run['pass_ratio']:.3f} | {run['waiting_s']:.2f} "
            f"| {run['peak_bytes'] / 2**20:.0f} |"
        )
    lines += ["", "Engines, CPU s, in the largest of these:", ""]
    last = report["validations"][-1]
    lines += [
        f"* {hop['name']} ({hop['executor']}): {last['hops_cpu_s'][hop['name']]:.1f}"
        for hop in last["hops"]
    ]
    lines += [
        "",
        (
            "Decoding and preprocessing, images/s (median of the rounds), and the ratio with its 95 % "
            "interval:"
        ),
        "",
        "| workers | resnet-opt | DataLoader | ratio | start included |",
        "|---|---|---|---|---|",
    ]
    for pair in report["decoding"]:
        resnet_opt, data_loader = (
            statistics.median(pair["images_per_s"][name]) for name in ("resnet-opt", "DataLoader")
        )
        shown = [
            f"{r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f})"
            for r in (pair["ratio"], pair["ratio_start_included"])
        ]
        lines.append(
            f"| {pair['workers']} | {resnet_opt:.0f} | {data_loader:.0f} | {shown[0]} | {shown[1]} |"
        )
    lines += ["", *(f"* {name}: {answer}" for name, answer in report["targets"].items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--decoding-images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean_bytes = make_images(folder / "decoding", options.decoding_images)
        _, engine = make_engine(folder, folder / "decoding")
        validations = []
        for count in sorted(options.images):
            images = folder / f"images{count}"
            make_images(images, count)
            validations.append(validate(engine, images, folder / "validate.json"))
            print(json.dumps(validations[-1]), flush=True)
        decoding = [
            compare(folder / "decoding", workers, options.rounds) for workers in range(1, CORES + 1)
        ]
    report: dict[str, Any] = {
        "device": fingerprint(),
        "libraries": library_versions("torch", "torchvision", "pillow", "openvino"),
        "mean_bytes": mean_bytes,
        "validations": validations,
        "decoding": decoding,
    }
    report["targets"] = verdicts(report)
    options.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(options.output / "validate.json", json.dumps(report, indent=2) + "\n")
    write_text_atomically(options.output / "validate.md", as_markdown(report))
    print(as_markdown(report))
    return 1 if "no" in report["targets"].values() else 0


if __name__ == "__main__":
    sys.exit(main())
