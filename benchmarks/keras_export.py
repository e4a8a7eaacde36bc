"""Times `resnet-opt export` of a ResNet-50 that Keras saved, from the command to the checked ONNX file.

    python benchmarks/keras_export.py --python ../peers/keras/bin/python [--model model.keras]

Each run is a new process without a cache. Writes ``reports/keras/export.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from keras_logits import REPORTS, run_keras
from readme import write_record
from startup import measure

from optimizer.environment import fingerprint

LIMIT_S = 15.0


def main() -> int:
    """Measure and write; returns 1 if the median exceeds the limit."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--python", type=Path, help="interpreter with keras and tensorflow")
    parser.add_argument("--model", type=Path, help="a .keras file, instead of one made by --python")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder for the report")
    options = parser.parse_args()
    if (options.python is None) == (options.model is None):
        parser.error("one of --python and --model is needed")
    with tempfile.TemporaryDirectory(prefix="keras_export.") as temporary:
        folder = Path(temporary)
        if options.model is None:
            run_keras(options.python, "ResNet50", 224, folder, onnx=False)
        model = options.model or folder / "model.keras"
        runs = []
        for number in range(options.runs):
            output = folder / f"{number}.onnx"
            command = [sys.executable, "-m", "optimizer", "export", str(model), "--no-cache"]
            runs.append(measure([*command, "-o", str(output)], 1))
    seconds = [run["median_s"] for run in runs]
    report = {
        "model": model.name,
        "seconds": seconds,
        "median_s": statistics.median(seconds),
        "limit_s": LIMIT_S,
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "device": fingerprint(),
    }
    write_record(options.output / "export.json", report)
    print(f"export of {model.name}: {report['median_s']:.1f} s (limit {LIMIT_S:.0f} s)")
    return 0 if report["median_s"] <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
