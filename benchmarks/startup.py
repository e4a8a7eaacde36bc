"""Start-up times: ``resnet-opt --help``, ``import optimizer``, and a whole export.

    python benchmarks/startup.py

Each command runs several times in a new process; the median is reported. Writes
``reports/startup/startup.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from optimizer.environment import fingerprint

OUTPUT = Path(__file__).parent.parent / "reports" / "startup" / "startup.json"


def measure(command: list[str], runs: int) -> dict[str, Any]:
    """Wall seconds (all runs and median) and peak memory in bytes of a command."""
    seconds, peak = [], 0
    for _ in range(runs):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        peak = max(peak, usage.ru_maxrss * 1024)
        if status != 0:
            raise SystemExit(f"{' '.join(command)} failed")
    return {"seconds": seconds, "median_s": statistics.median(seconds), "peak_bytes": peak}


def main() -> None:
    """Measure and write."""
    cli = [sys.executable, "-m", "optimizer"]
    with tempfile.TemporaryDirectory() as folder:
        export = [*cli, "export", "resnet50:random", "--no-cache", "-o", f"{folder}/model.onnx"]
        measured = {
            "help": measure([*cli, "--help"], 7),
            "import": measure([sys.executable, "-c", "import optimizer"], 7),
            "python": measure([sys.executable, "-c", "pass"], 7),
            "export resnet50 at 224 px": {},
        }
        runs = []
        for _ in range(3):
            for file in Path(folder).iterdir():
                file.unlink()
            runs.append(measure(export, 1))
        measured["export resnet50 at 224 px"] = {
            "seconds": [r["median_s"] for r in runs],
            "median_s": statistics.median(r["median_s"] for r in runs),
            "peak_bytes": max(r["peak_bytes"] for r in runs),
        }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({"device": fingerprint(), "measured": measured}, indent=2) + "\n")
    for name, result in measured.items():
        print(f"{name:<28} {result['median_s']:6.2f} s   {result['peak_bytes'] / 2**20:7.0f} MiB")


if __name__ == "__main__":
    main()
