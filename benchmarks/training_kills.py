"""Kills trainings with SIGKILL at random moments and continues them: do the weights stay the same?

    python benchmarks/training_kills.py

One training runs undisturbed. Twenty others are each killed once, after a time drawn evenly from the
length of the first, and continued with ``--resume`` (or started again if there was no checkpoint yet); a
third of them is killed once more while it continues. Counts how many end with the same SHA-256 of the
weights. The result does not depend on the speed of the machine.

Writes ``reports/training/kills.json`` and ``kills.md``. ``--kills 2 --dry`` only shows that it works.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from readme import write_record

from optimizer.environment import fingerprint
from optimizer.models import load_model

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "reports" / "training"
ARGUMENTS = [
    "--arch", "resnet10t", "--data", "digits:test", "--image-size", "8", "--epochs", "4",
    "--batch-size", "32", "--ema", "0.9", "--mixup", "0.2", "--checkpoint-every", "0.5s",
    "--device", "cpu", "--no-cache",
]  # fmt: skip


def start(output: Path, *more: str) -> subprocess.Popen[str]:
    """Start a training."""
    return subprocess.Popen(
        [sys.executable, "-m", "optimizer", "train", *ARGUMENTS, "-o", str(output), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a training; returns what it printed."""
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a training failed:\n{printed}")
    return printed


def killed_and_continued(output: Path, moments: list[float]) -> dict[str, Any]:
    """One training that is killed at these moments, seconds after its start and each continuation."""
    steps: list[str] = []
    folder = output.parent / f"{output.stem}.training"

    def more() -> list[str]:
        found = any((folder / name).exists() for name in ("last.pt", "previous.pt"))
        return ["--resume"] if found else []

    for moment in moments:
        process = start(output, *more())
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        steps.append("finished before" if process.returncode == 0 else "killed")
    if not output.exists():
        printed = finish(start(output, *more()))
        found = [line for line in printed.splitlines() if "continued at step" in line]
        steps += [line.split("note: ")[-1] for line in found] or ["started again"]
    return {"moments_s": moments, "what": steps, "sha256": load_model(output).sha256}


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    killed = sum("killed" in row["what"] for row in report["trainings"])
    summary = (
        f"{report['device']['cpu']}. {len(report['trainings'])} trainings, {killed} of them killed, "
        f"{report['equal']} with the weights of the undisturbed one at their end."
    )
    lines = [
        "# Trainings killed at random moments",
        "",
        summary,
        "",
        "| killed after, s | then | same weights |",
        "|---|---|---|",
    ]
    for row in report["trainings"]:
        moments = ", ".join(f"{moment:.1f}" for moment in row["moments_s"])
        same = "yes" if row["sha256"] == report["sha256"] else "**no**"
        lines.append(f"| {moments} | {'; '.join(row['what'])} | {same} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Kill, continue, count and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        finish(start(folder / "whole.safetensors"))
        length = time.perf_counter() - started
        expected = load_model(folder / "whole.safetensors").sha256
        trainings = []
        for number in range(arguments.kills):
            moments = [draw.uniform(0.1, 1) * length for _ in range(2 if number % 3 == 2 else 1)]
            output = folder / f"killed{number}.safetensors"
            trainings.append(killed_and_continued(output, moments))
            print(trainings[-1]["what"], trainings[-1]["sha256"] == expected, flush=True)
    report = {
        "device": fingerprint(),
        "command": f"python benchmarks/training_kills.py --kills {arguments.kills}",
        "settings": ARGUMENTS,
        "sha256": expected,
        "equal": sum(row["sha256"] == expected for row in trainings),
        "trainings": trainings,
    }
    print(text(report))
    if not arguments.dry:
        write_record(OUTPUT / "kills.json", report, text(report))
    if report["equal"] != arguments.kills:
        raise SystemExit("not all trainings ended with the same weights")


if __name__ == "__main__":
    main()
