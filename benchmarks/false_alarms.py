"""Error rates of speed verdicts, and the overhead of the harness.

    python benchmarks/false_alarms.py [--quick] [--part recordings|live|overhead]

Takes about an hour on an otherwise idle machine. Five parts:

1. *Recordings*: each engine, started six times, is measured in interleaved rounds, on a quiet machine
   and with random load on one core.
2. *Experiments*: 2,000 A/A experiments are resampled from each recording and judged as `bench` does,
   once unchanged and once with the candidate slowed down by 5 %.
3. *Live*: 20 complete runs of `bench` on two copies of one engine.
4. *Overhead*: the harness compared with a bare loop around the library, interleaved in random order.
5. *Cost of a call*: the harness with an engine that does nothing.

Writes ``reports/cpu/false_alarms.json``, ``.md`` and the marked block of ``docs/measuring.md``.
``--part`` measures one part again and keeps the others. ``--write-only`` regenerates the texts from the
JSON file. Exits with code 1 if a limit is exceeded.
``--quick`` is a smoke test on a small network; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cpu_peers import LOOP
from readme import machine, write_between_marks
from verdict_experiments import Outcome, record, repeat

import optimizer
from optimizer.artifacts import manifest_path, write_text_atomically
from optimizer.environment import fingerprint
from optimizer.profiling.bench_worker import time_calls
from optimizer.profiling.harness import Cell, Limits, measure
from optimizer.profiling.intervals import ratio_of_medians
from optimizer.profiling.worker_process import Worker
from optimizer.progress import Silent
from optimizer.targets.hardware import cpu_features

ROOT = Path(__file__).parent.parent
REPORTS = ROOT / "reports" / "cpu"
PAGE = ROOT / "docs" / "measuring.md"
MARK = "false-alarms"
MOST_ALARMS, LEAST_FOUND, MOST_WRONG = 0.05, 0.80, 0.05
MOST_LIVE_ALARMS = 2
MOST_OVERHEAD, MOST_CALL_US = 0.01, 20.0
MIN_EFFECT, SLOWDOWN = 0.02, 0.05
LONGEST_EXPERIMENT_S = 60.0
PARTS = ("recordings", "live", "overhead")


@dataclass(frozen=True)
class Plan:
    """Sizes and durations of all parts."""

    arch: str = "resnet50:random"
    overhead_arch: str = "resnet18:random"
    image_size: int = 224
    engines: tuple[tuple[str, str], ...] = (("openvino", "int8"), ("onnxruntime", "fp32"))
    starts: int = 6
    recorded_s: float = 90.0
    """Seconds of rounds per start."""
    experiment_s: float = 15.0
    """Seconds of rounds per engine in an experiment (baseline, control, candidate)."""
    experiments: int = 2000
    live: int = 20
    live_s: float = 10.0
    blocks: int = 200
    calls: int = 20


QUICK = Plan(
    image_size=64,
    arch="resnet18:random",
    engines=(("onnxruntime", "fp32"),),
    starts=3,
    recorded_s=1.0,
    experiment_s=0.5,
    experiments=20,
    live=1,
    live_s=0.5,
    blocks=6,
    calls=3,
)

BURNER = """
import os, random, sys, time
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
chance = random.Random(0)
while True:
    end = time.monotonic() + chance.expovariate(2.0)
    while time.monotonic() < end:
        pass
    time.sleep(chance.expovariate(2.0))
"""


@contextlib.contextmanager
def random_load(on: bool) -> Iterator[None]:
    """Load one core at random: on average half a second of load, then half a second of rest."""
    process = subprocess.Popen([sys.executable, "-c", BURNER]) if on else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def build(
    plan: Plan, arch: str, folder: Path, kinds: tuple[tuple[str, str], ...]
) -> dict[str, Path]:
    """Build engines with random seeded weights."""
    folder.mkdir()
    graph = optimizer.export(arch, folder / "model.onnx", image_size=plan.image_size).path
    stats = None
    if any(precision == "int8" for _, precision in kinds):
        size = plan.image_size
        images = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), np.uint8)
        np.savez(folder / "noise.npz", images=images, labels=np.arange(32) % 10)
        stats = optimizer.calibrate(
            graph, folder / "stats.npz", calib=str(folder / "noise.npz"), calib_images=32
        ).path
    suffixes = {"openvino": ".blob", "onnxruntime": ".ort.onnx"}
    return {
        f"{engine} {precision}": optimizer.build(
            graph,
            folder / f"{engine}-{precision}{suffixes[engine]}",
            precision=precision,
            engine=engine,
            stats=stats if precision == "int8" else None,
        ).path
        for engine, precision in kinds
    }


# --- the parts -----------------------------------------------------------------------------------


def experiments(name: str, path: Path, plan: Plan, loaded: bool, threads: int) -> dict[str, Any]:
    """Record an engine and resample experiments from the recording."""
    cells = [
        Cell(name=f"{name} {i}", engine=path, batch=1, image_size=None, threads=threads)
        for i in range(plan.starts)
    ]
    with random_load(loaded):
        started = time.monotonic()
        measured = measure(cells, Limits(duration_s=plan.recorded_s), seed=0, progress=Silent())
        seconds = time.monotonic() - started
    recording = record(measured.cells)
    rounds = max(6, round(recording.rounds * plan.experiment_s / plan.recorded_s))
    outcome = repeat(
        recording,
        rounds=rounds,
        experiments=plan.experiments,
        slowdown=SLOWDOWN,
        min_effect=MIN_EFFECT,
        seed=0,
    )
    # All processes share a clock; the time between blocks is spent waiting for idle threads.
    calls = np.concatenate([b.calls for m in measured.cells for b in m.blocks])
    rounds_s = float((calls.sum(axis=1).max() - calls[:, 0].min()) / 1e9)
    return {
        "engine": name,
        "loaded": loaded,
        "recorded_s": seconds,
        "recorded_rounds": recording.rounds,
        "median_ms": float(np.median(np.concatenate(recording.starts[0]))),
        "rounds": rounds,
        "seconds": 3 / plan.starts * rounds_s * rounds / recording.rounds,
        **shares(outcome),
        "disturbed_rounds": len(measured.conditions.disturbed_rounds),
        "notes": measured.conditions.notes,
    }


def shares(outcome: Outcome) -> dict[str, Any]:
    """An outcome as recorded in the JSON file."""
    return {
        "experiments": outcome.experiments,
        "alike": dict(outcome.alike),
        "slowed": dict(outcome.slowed),
        "unsteady": outcome.unsteady,
        "false_alarms": outcome.false_alarms,
        "found": outcome.detected,
        "wrong": outcome.wrong,
    }


def live(path: Path, plan: Plan, threads: int) -> list[dict[str, Any]]:
    """Run `bench` repeatedly on two copies of one engine."""
    twin = path.with_name(f"twin-{path.name}")
    shutil.copyfile(path, twin)
    manifest = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    manifest["file"] = twin.name
    manifest_path(twin).write_text(json.dumps(manifest), encoding="utf-8")
    rows = []
    for seed in range(plan.live):
        result = optimizer.bench(
            [path, twin],
            duration=f"{plan.live_s}s",
            min_effect=MIN_EFFECT,
            threads=threads,
            seed=seed,
        )
        (comparison,) = result.comparisons
        rows.append(
            {
                "ratio": comparison.ratio,
                "ci95": list(comparison.ci95),
                "verdict": comparison.verdict,
            }
        )
    return rows


def overhead(path: Path, plan: Plan, threads: int) -> dict[str, Any]:
    """Compare the harness with a bare loop on the same graph, interleaved in random order."""
    graph = path.with_name(path.name + ".graph.onnx")
    loop = subprocess.Popen(
        [
            sys.executable,
            "-c",
            LOOP,
            "openvino fixed",  # the engine also has a model for this batch
            str(graph),
            "1",
            str(threads),
            str(plan.image_size),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert loop.stdin is not None
    assert loop.stdout is not None
    worker = Worker(threads)
    medians: dict[str, list[float]] = {"bare": [], "harness": []}
    try:
        worker.ask("load", timeout_s=300, path=str(path), threads=threads, device=None)
        worker.ask("prepare", timeout_s=300, batch=1, image_size=None, seed=0)
        loop.stdout.readline()
        order = random.Random(0)
        for _ in range(plan.blocks):
            for kind in order.sample(list(medians), 2):
                if kind == "bare":
                    loop.stdin.write(f"{plan.calls}\n")
                    loop.stdin.flush()
                    medians[kind].append(float(loop.stdout.readline()))
                else:
                    medians[kind].append(_harness_block(worker, plan.calls))
    finally:
        worker.close()
        loop.communicate()
    harness, bare = ([np.array([m]) for m in medians[kind]] for kind in ("harness", "bare"))
    ratio = ratio_of_medians(harness, bare)
    return {
        "engine": path.name,
        "bare_ms": float(np.median(medians["bare"])),
        "harness_ms": float(np.median(medians["harness"])),
        "ratio": ratio.value,
        "ci95": list(ratio.ci95 or ()),
    }


def _harness_block(worker: Worker, calls: int) -> float:
    """Median call in ms of a block timed by the harness, with one lead-in call and a rest."""
    header, arrays = worker.ask(
        "time", timeout_s=300, seconds=0, min_calls=calls, min_lead_in=1, longest_rest_s=0.25
    )
    return float(np.median(arrays["calls"][header["lead_in"] :, 2])) / 1e6


class EmptyBatch:
    """A bound batch that does nothing."""

    def upload(self) -> None:
        """Does nothing."""

    enqueue = wait = download = upload

    def output(self) -> Any:
        """Never called."""
        raise NotImplementedError


def call_cost_us() -> float:
    """Median time of the harness per call, in microseconds."""
    calls, _ = time_calls(EmptyBatch(), seconds=0.5, min_calls=1000)
    return float(np.median(np.diff(calls[:, 0]))) / 1e3


# --- the report ----------------------------------------------------------------------------------


def limits(report: dict[str, Any]) -> dict[str, bool]:
    """Whether each limit holds."""
    rows = report["recordings"]
    alarms = sum(run["verdict"] in {"faster", "slower"} for run in report["live"])
    quiet = [row for row in rows if not row["loaded"]]
    return {
        f"false alarms at most {MOST_ALARMS:.0%}": all(
            row["false_alarms"] <= MOST_ALARMS for row in rows
        ),
        f"a slowdown of {SLOWDOWN:.0%} found in at least {LEAST_FOUND:.0%} when quiet": all(
            row["found"] >= LEAST_FOUND for row in quiet
        ),
        f"the slowed engine called faster or equivalent in at most {MOST_WRONG:.0%}": all(
            row["wrong"] <= MOST_WRONG for row in rows
        ),
        f"experiments of at most {LONGEST_EXPERIMENT_S:.0f} s": all(
            row["seconds"] <= LONGEST_EXPERIMENT_S for row in rows
        ),
        f"at most {MOST_LIVE_ALARMS} alarms in {len(report['live'])} live runs": alarms
        <= MOST_LIVE_ALARMS,
        f"the harness within {MOST_OVERHEAD:.0%} of a bare loop": abs(
            report["overhead"]["ratio"] - 1
        )
        <= MOST_OVERHEAD,
        f"at most {MOST_CALL_US:.0f} µs a call": report["call_us"] <= MOST_CALL_US,
    }


def text(report: dict[str, Any]) -> str:
    """The tables in Markdown, for the report and the docs."""
    head = (
        f"Measured on {machine(report['device'])} by `python benchmarks/false_alarms.py`; smallest "
        f"effect of interest {MIN_EFFECT:.0%}."
    )
    lines = [
        head,
        "",
        "| engine | machine | experiments | of, s | false alarms | 5 % slower: found | wrong | else |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["recordings"]:
        undecided = 1 - row["found"] - row["wrong"]
        lines.append(
            f"| {row['engine']}, {row['median_ms']:.1f} ms | "
            f"{'one core loaded at random' if row['loaded'] else 'quiet'} | "
            f"{row['experiments']:,} | {row['seconds']:.0f} | {row['false_alarms']:.1%} | "
            f"{row['found']:.1%} | {row['wrong']:.1%} | {undecided:.1%} inconclusive |"
        )
    runs, cost = report["live"], report["overhead"]
    alarms = sum(run["verdict"] in {"faster", "slower"} for run in runs)
    ends = cost["ci95"]
    lines += [
        "",
        f"- {alarms} alarms in {len(runs)} live runs of one engine against its copy.",
        f"- The harness measures {cost['harness_ms']:.3f} ms where a bare loop around the library "
        f"measures {cost['bare_ms']:.3f} ms: the bare loop runs at {cost['ratio']:.4f} times the "
        "harness's speed" + (f" (95 % interval {ends[0]:.4f} to {ends[1]:.4f})." if ends else "."),
        f"- Around an engine that does nothing it takes {report['call_us']:.2f} µs a call.",
        "",
        "| limit | held |",
        "|---|---|",
        *[f"| {name} | {'yes' if held else 'no'} |" for name, held in limits(report).items()],
    ]
    return "\n".join(lines) + "\n"


def measured(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """Measure the given parts."""
    threads = cpu_features().physical_cores
    report: dict[str, Any] = {"device": fingerprint(), "plan": asdict(plan)}
    with tempfile.TemporaryDirectory() as name:
        if "overhead" in parts:
            small = build(plan, plan.overhead_arch, Path(name) / "small", (("openvino", "int8"),))
            report["overhead"] = overhead(next(iter(small.values())), plan, threads)
            report["call_us"] = call_cost_us()
        if {"recordings", "live"} & set(parts):
            engines = build(plan, plan.arch, Path(name) / "engines", plan.engines)
        if "live" in parts:
            report["live"] = live(next(iter(engines.values())), plan, threads)
        if "recordings" in parts:
            report["recordings"] = [
                experiments(label, path, plan, loaded, threads)
                for label, path in engines.items()
                for loaded in (False, True)
            ]
    return report


def main() -> int:
    """Measure and write; returns 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="smoke test; the figures are meaningless"
    )
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--part", choices=PARTS, help="measure one part again and keep the others")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the two files")
    parser.add_argument("--recorded", type=float, help="seconds per start in a recording")
    options = parser.parse_args()
    if options.quick and options.output == REPORTS:
        parser.error("--quick needs a different --output: its figures must not replace the report")
    path = options.output / "false_alarms.json"
    if (options.part or options.write_only) and not path.is_file():
        parser.error(f"{path} does not exist: measure all parts first")
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.write_only:
        plan = QUICK if options.quick else Plan()
        if options.recorded:
            plan = replace(plan, recorded_s=options.recorded)
        previous = json.loads(path.read_text(encoding="utf-8")) if options.part else {}
        report = previous | measured(plan, [options.part] if options.part else PARTS)
        write_text_atomically(
            path, json.dumps({**report, "limits": limits(report)}, indent=1) + "\n"
        )
    report = json.loads(path.read_text(encoding="utf-8"))
    shown = text(report)
    write_text_atomically(options.output / "false_alarms.md", f"# False alarms\n\n{shown}")
    if options.output == REPORTS:
        write_between_marks(PAGE, MARK, f"\n{shown}")
    print(shown)
    return 0 if all(limits(report).values()) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
