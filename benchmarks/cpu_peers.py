"""Compares many ways to run ResNet-50 on this CPU in one run.

    python benchmarks/cpu_peers.py [--python nncf=…/bin/python] [--quick]

PyTorch (eager, channels-last, compiled), ONNX Runtime and OpenVINO called directly, OpenVINO's
``benchmark_app``, graphs of ONNX Runtime's quantizer and of NNCF, and our engines: the one chosen by
``--engine auto`` and the other one. OpenVINO runs graphs as exported, for any batch, and reshaped to
the batch size (like ``benchmark_app``; our engines contain both). Each runs in its own process. In
every round each computes one block, in random order, and comparisons are paired by round. Weights and
images are random and seeded: the figures show speed only. NNCF runs in the interpreter of its own
environment.
Writes ``reports/cpu/peers.json`` and ``reports/cpu/peers.md``. ``--quick`` is a smoke test on a small
network; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from quantizers import run_quantizer, slug

import optimizer
from optimizer.artifacts import write_text_atomically
from optimizer.engines import get_backend
from optimizer.engines.choice import choose_engine
from optimizer.environment import fingerprint
from optimizer.models import load_model, save_checkpoint
from optimizer.profiling.intervals import ratio_of_medians, wall_rate
from optimizer.targets.hardware import cpu_features

REPORTS = Path(__file__).parent.parent / "reports" / "cpu"
QUANTIZERS = {"onnxruntime's quantizer": "onnxruntime u8 minmax",
              "NNCF": "nncf symmetric, no bias correction"}  # fmt: skip
AIMS = {"int8": 1.03, "fp32": 1.0, "bf16": 1.0}
"""Target speed of the engine chosen by `auto`, relative to the fastest peer."""
_MEDIAN = re.compile(r"Median:\s+([\d.]+) (ms|us)")

LOOP = """
import sys, time, numpy as np
kind, path, batch, threads, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
x = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
if kind == "ours":
    from optimizer.engines import open_engine
    from pathlib import Path
    bound = open_engine(Path(path), threads=threads).bind(x)
    call = lambda: (bound.enqueue(), bound.wait())
elif kind.startswith("openvino"):
    import openvino as ov
    model = ov.Core().read_model(path)
    if "fixed" in kind:
        model.reshape([batch, 3, size, size])
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
              "INFERENCE_PRECISION_HINT": "bf16" if kind.endswith("bf16") else "f32"}
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))
    call = lambda: request.infer(share_outputs=True)
elif kind == "onnxruntime":
    import onnxruntime as ort
    options = ort.SessionOptions(); options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    call = lambda: session.run(None, {"images": x})
else:
    import torch
    from optimizer.models import load_model
    torch.set_num_threads(threads)
    module, images = load_model(path).module, torch.from_numpy(x)
    if kind != "torch eager":
        module = module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if kind.endswith("bf16"):
        module, images = module.bfloat16(), images.bfloat16()
    if kind.startswith("torch compiled"):
        import torch._inductor.config
        torch._inductor.config.freezing = True
        module = torch.compile(module)
    def call():
        with torch.inference_mode():
            module(images)
for _ in range(5): call()
from optimizer.profiling.bench_worker import wait_until_idle
print("ready", flush=True)
for line in sys.stdin:
    samples = []
    for _ in range(1 + int(line)):
        started = time.perf_counter_ns(); call(); samples.append(time.perf_counter_ns() - started)
    wait_until_idle(0.25)  # threads that spin after a call would slow the next peer down
    print(sorted(samples[1:])[(len(samples) - 1) // 2] / 1e6, flush=True)
"""


class Peer(Protocol):
    """Computes blocks of calls."""

    def block(self, calls: int) -> float:
        """Median time of ``calls`` calls, in milliseconds."""

    def close(self) -> None:
        """Stop the peer."""


class Loop:
    """A process that calls a library in a loop."""

    def __init__(self, kind: str, path: Path, batch: int, threads: int, size: int) -> None:
        numbers = [str(n) for n in (batch, threads, size)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP, kind, str(path), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        if self._read() != "ready":
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise RuntimeError(last[-1] if last else "it ended without output")

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def block(self, calls: int) -> float:
        """See `Peer`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """See `Peer`."""
        self._process.communicate()
        self._errors.close()


class BenchmarkApp:
    """OpenVINO's ``benchmark_app``, started again for every block."""

    def __init__(self, graph: Path, batch: int, threads: int, size: int) -> None:
        app = Path(sys.executable).with_name("benchmark_app")
        if not app.is_file():
            raise RuntimeError("OpenVINO's benchmark_app is not installed beside this interpreter")
        shape = f"images[{batch},3,{size},{size}]"
        self._command = [
            str(app), "-m", str(graph), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1",
            "-nthreads", str(threads), "-data_shape", shape, "-shape", shape,
            "-infer_precision", "f32",
        ]  # fmt: skip

    def block(self, calls: int) -> float:
        """See `Peer`."""
        completed = subprocess.run(
            [*self._command, "-niter", str(calls)], capture_output=True, text=True, check=False
        )
        match = _MEDIAN.search(completed.stdout)
        if match is None:
            lines = (completed.stderr or completed.stdout).strip().splitlines() or ["no output"]
            raise RuntimeError(f"benchmark_app failed: {lines[-1]}")
        return float(match[1]) * {"ms": 1.0, "us": 1e-3}[match[2]]

    def close(self) -> None:
        """Does nothing: the process has ended."""


@dataclass(frozen=True)
class Entry:
    """One row of the table: how a graph is run. ``kind`` is that of `LOOP`, or ``benchmark_app``."""

    name: str
    kind: str
    path: Path
    ours: bool = False

    def start(self, batch: int, threads: int, size: int) -> Peer:
        """Start the peer."""
        if self.kind == "benchmark_app":
            return BenchmarkApp(self.path, batch, threads, size)
        return Loop(self.kind, self.path, batch, threads, size)


# --- the peers -----------------------------------------------------------------------------------


def entries(
    folder: Path, arch: str, size: int, python: dict[str, str]
) -> tuple[dict[str, list[Entry]], list[str]]:
    """Entries by precision, starting with the engine chosen by `auto`; and missing peers."""
    checkpoint = folder / "model.safetensors"
    save_checkpoint(load_model(arch, image_size=size), checkpoint, details={})
    graph = optimizer.export(str(checkpoint), folder / "fp32.onnx").path
    rng = np.random.default_rng(0)
    np.save(folder / "calibration.npy", rng.normal(size=(32, 3, size, size)).astype(np.float32))
    pixels = rng.integers(0, 256, (32, size, size, 3), np.uint8)
    np.savez(folder / "noise.npz", images=pixels, labels=np.arange(32) % 10)
    stats = optimizer.calibrate(
        graph, folder / "stats.npz", calib=str(folder / "noise.npz"), calib_images=32
    ).path
    listed_by_precision = {
        "fp32": [
            *ours("fp32", graph, folder, stats),
            *[Entry(kind.replace("torch", "PyTorch"), kind, checkpoint)
              for kind in ("torch eager", "torch channels-last", "torch compiled")],
            Entry("OpenVINO called directly", "openvino", graph),
            Entry("OpenVINO called directly, fixed batch", "openvino fixed", graph),
            Entry("OpenVINO's benchmark_app", "benchmark_app", graph),
            Entry("ONNX Runtime called directly", "onnxruntime", graph),
        ],
        "int8": ours("int8", graph, folder, stats),
    }  # fmt: skip
    for backend, name in (("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime")):
        our_engine = next(e for e in listed_by_precision["int8"] if f"({backend})" in e.name).path
        lowered = our_engine.with_name(our_engine.name + ".graph.onnx")
        listed_by_precision["int8"].append(
            Entry(f"{name} called directly, our graph", backend, lowered)
        )
        if backend == "openvino":
            listed_by_precision["int8"] += [
                Entry(
                    "OpenVINO called directly, our graph, fixed batch", "openvino fixed", lowered
                ),
                Entry("OpenVINO's benchmark_app, our graph", "benchmark_app", lowered),
            ]
    if cpu_features().bf16:
        listed_by_precision["bf16"] = [
            *ours("bf16", graph, folder, stats),
            Entry("PyTorch compiled", "torch compiled bf16", checkpoint),
            Entry("OpenVINO called directly", "openvino bf16", graph),
            Entry("OpenVINO called directly, fixed batch", "openvino fixed bf16", graph),
        ]
    missing = [] if "bf16" in listed_by_precision else ["BF16: this CPU has no instructions for it"]
    for name, key in QUANTIZERS.items():
        facts = run_quantizer(key, python, folder)
        if "seconds" not in facts:
            missing.append(f"{name}: {facts.get('reason', facts['status'])}")
            continue
        path = folder / f"{slug(key)}.onnx"
        listed_by_precision["int8"] += [
            Entry(f"{name}'s graph in {engine}", kind, path)
            for kind, engine in (
                ("openvino", "OpenVINO"),
                ("openvino fixed", "OpenVINO, fixed batch"),
                ("onnxruntime", "ONNX Runtime"),
            )
        ]
    return listed_by_precision, missing


def ours(precision: str, graph: Path, folder: Path, stats: Path) -> list[Entry]:
    """Our engines for a precision, starting with the one chosen by `auto`."""
    chosen = choose_engine(precision).engine
    engines = []
    for name in dict.fromkeys([chosen, "openvino", "onnxruntime"]):
        if precision == "bf16" and name == "onnxruntime":
            continue
        path = optimizer.build(
            graph,
            folder / f"{name}-{precision}{get_backend(name).suffix}",
            precision=precision,
            engine=name,
            stats=stats if precision == "int8" else None,
            fixed_batch=(1, 8) if name == "openvino" else None,
        ).path
        label = f"ours, auto ({name})" if name == chosen else f"ours ({name})"
        engines.append(Entry(label, "ours", path, ours=True))
    return engines


# --- measuring -----------------------------------------------------------------------------------


def compare(
    listed: list[Entry], batch: int, threads: int, size: int, blocks: int, calls: int
) -> list[dict[str, Any]]:
    """Measure all entries, interleaved; the others are compared with the first."""
    alive: dict[str, Peer] = {}
    failed: dict[str, str] = {}
    medians: dict[str, list[float]] = {}
    try:
        for entry in listed:
            try:
                alive[entry.name] = entry.start(batch, threads, size)
                medians[entry.name] = []
            except RuntimeError as error:
                failed[entry.name] = str(error)
        order = random.Random(batch)
        for _ in range(blocks):
            for name in order.sample(list(alive), len(alive)):
                try:
                    medians[name].append(alive[name].block(calls))
                except (RuntimeError, ValueError, OSError) as error:
                    failed[name] = f"{type(error).__name__}: {error}"
                    alive.pop(name).close()
    finally:
        for peer in alive.values():
            peer.close()
    first = medians[listed[0].name]
    return [
        {"name": e.name, "ours": e.ours, "batch": batch, "error": failed[e.name]}
        if e.name in failed
        else row(e, batch, first, medians[e.name])
        for e in listed
    ]


def row(entry: Entry, batch: int, first: list[float], medians: list[float]) -> dict[str, Any]:
    """One row of the table."""
    rate = wall_rate(np.full(len(medians), float(batch)), np.array(medians) / 1e3)
    speed = ratio_of_medians([np.array([m]) for m in medians], [np.array([m]) for m in first])
    return {
        "name": entry.name,
        "ours": entry.ours,
        "batch": batch,
        "median_ms": float(np.median(medians)),
        "images_per_s": rate.value,
        "images_per_s_ci95": rate.ci95,
        "speed_of_auto_in_units_of_it": speed.value,
        "ci95": speed.ci95,
    }


def aims(rows: list[dict[str, Any]], precision: str) -> str:
    """Compare the engine chosen by `auto` with the fastest peer and with our other engine."""
    timed = [r for r in rows if "error" not in r]
    peers = [r for r in timed if not r["ours"]]
    sentences = []
    if peers:
        best = max(peers, key=lambda r: r["images_per_s"])
        ratio, ends = best["speed_of_auto_in_units_of_it"], best["ci95"]
        sentences.append(
            f"auto is {ratio:.3f} times as fast as the fastest peer, {best['name']}{interval(ends)}; "
            f"aim {AIMS[precision]:.2f}: {'reached' if ratio >= AIMS[precision] else 'not reached'}"
        )
    others = [r for r in timed if r["ours"]][1:]
    for other in others:
        ratio, ends = other["speed_of_auto_in_units_of_it"], other["ci95"]
        right = "chose the fastest" if not ends or ends[1] >= 1 else "did not choose the fastest"
        sentences.append(f"auto {right}: {ratio:.3f} times {other['name']}{interval(ends)}")
    return "; ".join(sentences) + "."


def interval(ends: Any) -> str:
    """`` (0.99 to 1.02)``, or an empty string."""
    return f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""


def text(report: dict[str, Any]) -> str:
    """The tables in Markdown."""
    device, plan = report["device"], report["plan"]
    lines = [f"# {plan['arch']} at {plan['size']} px: every way to run it on this CPU", ""]
    lines += [f"{device.get('cpu')}, {plan['threads']} threads; 95 % intervals.", ""]
    for table in report["tables"]:
        lines += [
            f"**{table['precision'].upper()}, batch {table['batch']}**: "
            + aims(table["rows"], table["precision"]),
            "",
            "| how | images/s | 95 % interval | auto in units of it | 95 % interval |",
            "|---|---|---|---|---|",
        ]
        for one in table["rows"]:
            if "error" in one:
                lines.append(f"| {one['name']} | – | {one['error']} | – | – |")
                continue
            ends, ratio = one["images_per_s_ci95"], one["ci95"]
            lines.append(
                f"| {one['name']} | {one['images_per_s']:.1f} | "
                f"{f'{ends[0]:.1f} to {ends[1]:.1f}' if ends else '–'} | "
                f"{one['speed_of_auto_in_units_of_it']:.3f} | "
                f"{f'{ratio[0]:.3f} to {ratio[1]:.3f}' if ratio else '–'} |"
            )
        lines.append("")
    return "\n".join([*lines, *[f"- not run: {reason}" for reason in report["missing"]]]) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=INTERPRETER")
    parser.add_argument(
        "--quick", action="store_true", help="smoke test; the figures are meaningless"
    )
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the two files")
    options = parser.parse_args()
    if options.quick and options.output == REPORTS:
        parser.error("--quick needs a different --output: its figures must not replace the report")
    python = dict(entry.split("=", 1) for entry in options.python)
    arch, size, blocks, calls = "resnet50:random", 224, 30, {1: 20, 8: 4}
    if options.quick:
        arch, size, blocks, calls = "resnet18:random", 32, 6, {1: 2}
    threads = cpu_features().physical_cores
    with tempfile.TemporaryDirectory() as name:
        listed_by_precision, missing = entries(Path(name), arch, size, python)
        tables = [
            {
                "precision": precision,
                "batch": batch,
                "rows": compare(listed, batch, threads, size, blocks, calls[batch]),
            }
            for precision, listed in listed_by_precision.items()
            for batch in calls
        ]
    plan = {"arch": arch.partition(":")[0], "size": size, "threads": threads, "blocks": blocks}
    report = {"device": fingerprint(), "plan": plan, "missing": missing, "tables": tables}
    options.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(options.output / "peers.json", json.dumps(report, indent=1) + "\n")
    report = json.loads(json.dumps(report))
    write_text_atomically(options.output / "peers.md", text(report))
    print(text(report))


if __name__ == "__main__":
    main()
