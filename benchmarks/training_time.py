"""How accurate networks are after a short training on the bundled digits, and how long it takes.

    python benchmarks/training_time.py

Trains ResNet-50 and ResNet-101 with the default recipe, each in a process of its own, and measures wall
time from the start of the process to the written checkpoint, and the accuracy on the 540 held-out digits.
Limits are those of the documentation: 98 % within 120 s, and 97 % within 240 s, on two cores.

Writes ``reports/training/time.json`` and ``time.md``. ``--quick`` only shows that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from readme import write_record

from optimizer.environment import fingerprint

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "reports" / "training"
LIMITS = {"resnet50": (0.98, 120), "resnet101": (0.97, 240)}


def measure(arch: str, more: list[str], output: Path) -> dict[str, Any]:
    """Train one network."""
    command = [
        sys.executable, "-m", "optimizer", "train", "--arch", arch, "--data", "digits:train", "--device",
        "cpu", "--no-cache", "--json", "-o", str(output), *more,
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    seconds = time.perf_counter() - started
    details = json.loads(done.stdout)["details"]
    top1, limit = LIMITS.get(arch, (0.0, 0))
    return {
        "arch": arch,
        "flags": more,
        "seconds": seconds,
        "top1": details["top1"],
        "held_out": details["n_held_out"],
        "epochs": len(details["history"]),
        "limit": {"top1": top1, "seconds": limit},
        "reached": details["top1"] >= top1 and seconds <= limit,
    }


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# Trainings on the digits",
        "",
        f"{report['device']['cpu']}, {report['device']['cores']} cores.",
        "",
        "| network | epochs | seconds | top-1, % | limit | reached |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["trainings"]:
        limit = f"{100 * row['limit']['top1']:.0f} % within {row['limit']['seconds']} s"
        lines.append(
            f"| {row['arch']} | {row['epochs']} | {row['seconds']:.0f} | {100 * row['top1']:.2f} | {limit} "
            f"| {'yes' if row['reached'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny network, and nothing is written"
    )
    arguments = parser.parse_args()
    more = [] if arguments.epochs is None else ["--epochs", str(arguments.epochs)]
    archs = tuple(LIMITS)
    if arguments.quick:
        archs, more = ("resnet10t",), ["--epochs", "1", "--image-size", "8"]
    with tempfile.TemporaryDirectory() as name:
        rows = [measure(arch, more, Path(name) / f"{arch}.safetensors") for arch in archs]
    report = {"device": fingerprint(), "trainings": rows}
    print(text(report))
    if not arguments.quick:
        write_record(OUTPUT / "time.json", report, text(report))


if __name__ == "__main__":
    main()
