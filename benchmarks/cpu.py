"""ResNet-50 at 224 px on this CPU: our engines, PyTorch, and the libraries called directly.

    python benchmarks/cpu.py [--duration 10s]

Weights and images are random and seeded: the figures show speed, not accuracy. ``resnet-opt bench``
measures the engines (one process each, rounds interleaved in random order). Then each CPU engine is
compared with a bare loop around its library on the same graph, in two processes, with blocks
interleaved in random order. Writes ``reports/cpu/bench.json``, ``reports/cpu/direct.json`` and
``reports/cpu/summary.md``, and the figures for batch 1 into README.md.
``--write-only`` regenerates the two texts from the recorded JSON files.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cpu_peers import LOOP
from materials import random_resnet50
from readme import write_into_readme

import optimizer
from optimizer.environment import fingerprint
from optimizer.profiling.intervals import ratio_of_medians
from optimizer.results import BenchResult, read_result, write_result
from optimizer.units import parse_duration

ROOT = Path(__file__).parent.parent
REPORTS = ROOT / "reports" / "cpu"
BLOCKS = 16
# Calls per block by batch size: enough for a median at batch 1; batch 8 takes eight times as long.
CALLS = {1: 20, 8: 5}
FIXED_BATCH = (1, 8)


def engines(folder: Path) -> dict[str, Path]:
    """Build the engines; graphs quantized for TensorRT run on CPU engines for comparison."""
    material = random_resnet50(folder)
    model, graph, stats = material.checkpoint, material.graph, material.statistics
    built = {"PyTorch eager, channels-last": model}
    for engine, suffix in (("openvino", ".blob"), ("onnxruntime", ".ort.onnx")):
        for precision in ("fp32", "int8"):
            built[f"{engine} {precision}"] = optimizer.build(
                graph,
                folder / f"{engine}-{precision}{suffix}",
                precision=precision,
                engine=engine,
                stats=stats,
                fixed_batch=FIXED_BATCH if engine == "openvino" else None,
            ).path
    foreign = optimizer.quantize(
        graph,
        folder / "tensorrt-lowering.onnx",
        precision="int8",
        target="tensorrt",
        stats=stats,
        high_precision="fp32",
    ).path
    built["onnxruntime int8, TensorRT's lowering"] = optimizer.build(
        foreign,
        folder / "onnxruntime-int8-tensorrt-lowering.ort.onnx",
        precision="int8",
        engine="onnxruntime",
    ).path
    built["openvino int8, TensorRT's lowering"] = optimizer.build(
        foreign,
        folder / "openvino-int8-tensorrt-lowering.blob",
        precision="int8",
        engine="openvino",
        fixed_batch=FIXED_BATCH,
    ).path
    return built


# --- compared with a bare loop -------------------------------------------------------------------


def direct(
    name: str, engine: Path, library: str, batch: int, threads: int, seed: int
) -> dict[str, Any]:
    """Compare our session with a bare loop around the library on the same graph, interleaved."""
    graph = engine.with_name(engine.name + ".graph.onnx")
    # Our engine has a model for the fixed batch, so the library gets one too.
    loop = "openvino fixed" if library == "openvino" else library
    workers = {
        kind: subprocess.Popen(
            [sys.executable, "-c", LOOP, kind, str(path), str(batch), str(threads), "224"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind, path in (("ours", engine), (loop, graph))
    }
    order = random.Random(seed)
    medians: dict[str, list[float]] = {kind: [] for kind in workers}
    for worker in workers.values():
        assert worker.stdout is not None
        worker.stdout.readline()
    for _ in range(BLOCKS):
        for kind in order.sample(list(workers), 2):
            worker = workers[kind]
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(f"{CALLS[batch]}\n")
            worker.stdin.flush()
            medians[kind].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    bare, session = ([np.array([m]) for m in medians[kind]] for kind in (loop, "ours"))
    speed = ratio_of_medians(bare, session, seed=seed)
    return {
        "engine": name,
        "batch": batch,
        "ours_ms": statistics.median(medians["ours"]),
        "direct_ms": statistics.median(medians[loop]),
        "speed_of_ours_in_units_of_direct": speed.value,
        "ci95": list(speed.ci95 or ()),
    }


# --- the texts -----------------------------------------------------------------------------------

NAMES = {
    "model.safetensors": "PyTorch eager, channels-last",
    "openvino-fp32.blob": "OpenVINO FP32",
    "openvino-int8.blob": "OpenVINO INT8",
    "openvino-int8-tensorrt-lowering.blob": "OpenVINO INT8, TensorRT's lowering",
    "onnxruntime-fp32.ort.onnx": "ONNX Runtime FP32",
    "onnxruntime-int8.ort.onnx": "ONNX Runtime INT8",
    "onnxruntime-int8-tensorrt-lowering.ort.onnx": "ONNX Runtime INT8, TensorRT's lowering",
}


def rows(result: BenchResult, batches: list[int]) -> list[str]:
    """A Markdown table of the engines."""
    lines = [
        "| engine | batch | images/s | 95 % interval | × PyTorch | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    ratios = {(c.b, c.batch): c for c in result.comparisons}
    for engine in result.engines:
        if engine.batch not in batches:
            continue
        c, ci = ratios.get((engine.name, engine.batch)), engine.images_per_s_ci95
        lines.append(
            f"| {NAMES[engine.name]} | {engine.batch} | {engine.images_per_s or 0:.1f} | "
            f"{f'{ci[0]:.1f} to {ci[1]:.1f}' if ci else '–'} | {f'{c.ratio:.2f}' if c else '1'} | "
            f"{f'{c.ci95[0]:.2f} to {c.ci95[1]:.2f}' if c else '–'} |"
        )
    return lines


def summary(result: BenchResult, pairs: list[dict[str, Any]]) -> str:
    """The Markdown tables of both parts."""
    head = (
        f"{result.device.get('cpu')} ({', '.join(result.device.get('flags') or [])}); "
        f"`python benchmarks/cpu.py`; verdict of the run: {result.verdict} ({result.reason})."
    )
    lines = ["# ResNet-50 at 224 px on a CPU", "", head, "", *rows(result, [1, 8]), ""]
    lines += [
        "Our session against a bare loop around the library on the same graph:",
        "",
        "| engine | batch | ours, ms | direct, ms | our speed in units of the direct loop | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p['engine']} | {p['batch']} | {p['ours_ms']:.2f} | {p['direct_ms']:.2f} | "
        f"{p['speed_of_ours_in_units_of_direct']:.3f} | {p['ci95'][0]:.3f} to {p['ci95'][1]:.3f} |"
        for p in pairs
    ]
    return "\n".join(lines) + "\n"


def write(result: BenchResult, pairs: list[dict[str, Any]]) -> None:
    """Write the summary and the README's table."""
    (REPORTS / "summary.md").write_text(summary(result, pairs), encoding="utf-8")
    write_into_readme("cpu", "\n" + "\n".join(rows(result, [1])) + "\n")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", default="6s")
    parser.add_argument("--write-only", action="store_true")
    options = parser.parse_args()
    REPORTS.mkdir(parents=True, exist_ok=True)
    if not options.write_only:
        measure(parse_duration(options.duration))
    result = read_result(REPORTS / "bench.json")
    assert isinstance(result, BenchResult)
    write(result, json.loads((REPORTS / "direct.json").read_text(encoding="utf-8")))


def measure(duration: float) -> None:
    """Measure both parts and write their JSON files."""
    threads = int(fingerprint().get("cores") or 2)
    with tempfile.TemporaryDirectory() as name:
        built = engines(Path(name))
        result = optimizer.bench(
            list(built.values()), batch=[1, 8], duration=f"{duration}s", threads=threads
        )
        pairs = [
            direct(label, built[label], label.split()[0], batch, threads, seed)
            for seed, (label, batch) in enumerate(
                (f"{library} {precision}", batch)
                for library in ("openvino", "onnxruntime")
                for precision in ("fp32", "int8")
                for batch in (1, 8)
            )
        ]
    for engine in result.engines:
        engine.raw_file = None
    write_result(result, REPORTS / "bench.json")
    (REPORTS / "direct.json").write_text(json.dumps(pairs, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
