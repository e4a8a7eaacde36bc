"""Records the demo: its times with an empty and a warm cache, its report and its output.

    python benchmarks/demo.py [--task detection]

Runs ``resnet-opt demo`` twice in a temporary folder, the first time with an empty cache. Writes the
small files of the run and ``times.json`` to ``reports/demo/``, and the output of the demo to README.md.
With ``--task detection``, all of it goes to ``reports/detection/demo/``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from readme import write_into_readme

from optimizer.environment import fingerprint

ROOT = Path(__file__).parent.parent
FOLDERS = {"classification": "demo", "detection": "demo-detection"}
"""Run folder by task."""
OUTPUTS = {
    "classification": ROOT / "reports" / "demo",
    "detection": ROOT / "reports" / "detection" / "demo",
}
KEPT = ("report.html", "report.md", "results.json", "validate.json", "bench.json", "recipe.yaml")


def demo(folder: Path, task: str) -> tuple[float, str, int]:
    """Run the demo; returns wall seconds, output and exit code."""
    environment = {**os.environ, "RESNET_OPT_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    started = time.perf_counter()
    completed = subprocess.run(
        [str(Path(sys.executable).with_name("resnet-opt")), "demo", "--task", task],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return time.perf_counter() - started, completed.stdout, completed.returncode


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=FOLDERS, default="classification")
    task = parser.parse_args().task
    output = OUTPUTS[task]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold, printed, code = demo(folder, task)
        if code != 0:
            raise SystemExit(f"the demo failed with exit code {code}:\n{printed}")
        output.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            shutil.copyfile(folder / "runs" / FOLDERS[task] / file, output / file)
        again, _, _ = demo(folder, task)
    device = fingerprint()
    times = {"device": device, "cold_s": cold, "second_s": again}
    (output / "times.json").write_text(json.dumps(times, indent=2) + "\n")
    shown = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    print(f"cold {cold:.0f} s, second {again:.1f} s")
    if task == "detection":
        (output / "output.txt").write_text(shown + "\n", encoding="utf-8")
        return
    write_into_readme("demo", f"\n```\n{shown}\n```\n")
    sentence = (
        f"It took {cold:.0f} s on {device['cores']} cores of this machine "
        f"({device['cpu']}, {', '.join(device['flags'])}), and {again:.0f} s when it was run again"
    )
    write_into_readme("times", sentence)


if __name__ == "__main__":
    main()
