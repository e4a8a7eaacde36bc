"""Time of turning a detector's raw outputs into boxes. Writes ``reports/detection/boxes.json``.

Run: ``python benchmarks/detection_boxes.py`` (half a minute on one core; no data needed). The outputs are
made up so that a given number of candidates reaches non-maximum suppression, which decides the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts import write_text_atomically
from optimizer.data import Preprocessing
from optimizer.environment import fingerprint
from optimizer.models import DetectorSpec
from optimizer.tasks.boxes import BoxReader

OUTPUT = Path(__file__).parent.parent / "reports" / "detection" / "boxes.json"
IMAGE_SIZE, CLASSES = 640, 80
CANDIDATES = (100, 1000, 5000)


def outputs_with(spec: DetectorSpec, candidates: int) -> np.ndarray:
    """Raw outputs of one image: so many class logits above the threshold, on clustered anchors."""
    random = np.random.default_rng(0)
    outputs = np.full(spec.output_shape, -9, np.float32)
    outputs[:, :4] = random.normal(0, 0.2, (len(outputs), 4)) + (spec.kind == "fcos")
    outputs[:, 4 : spec.box_values] = 3
    start = int(random.integers(len(outputs) // 4))
    anchors = start + random.permutation(4 * candidates)[:candidates]  # neighbours overlap
    classes = random.integers(0, 4, candidates)
    outputs[anchors, spec.box_values + classes] = random.normal(1, 1, candidates).clip(-1, 6)
    return outputs


def measure(kind: str, candidates: int, repetitions: int) -> dict[str, Any]:
    """Median and 95th percentile of the time of one image, ms, in one thread."""
    import torch

    torch.set_num_threads(1)
    spec = DetectorSpec.of(kind, IMAGE_SIZE, CLASSES)
    reader = BoxReader(spec, Preprocessing.detection(IMAGE_SIZE))
    outputs = outputs_with(spec, candidates)
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        found = reader.read(outputs, (IMAGE_SIZE, IMAGE_SIZE))
        times.append(1e3 * (time.perf_counter() - started))
    return {
        "kind": kind,
        "anchors": spec.output_shape[0],
        "candidates": candidates,
        "boxes": len(found.scores),
        "repetitions": repetitions,
        "median_ms": statistics.median(times),
        "p95_ms": float(np.quantile(times, 0.95)),
    }


def main() -> None:
    """Measure all combinations and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    rows = [
        measure(kind, candidates, options.repetitions)
        for kind in ("retinanet", "fcos")
        for candidates in CANDIDATES
    ]
    record = {
        "image_size": IMAGE_SIZE,
        "classes": CLASSES,
        "device": fingerprint(),
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(options.output, json.dumps(record, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['kind']}: {row['candidates']} candidates, {row['boxes']} boxes: "
            f"{row['median_ms']:.2f} ms (p95 {row['p95_ms']:.2f})"
        )


if __name__ == "__main__":
    main()
