"""Speed of the graphs of several quantizers at 224 px.

    python benchmarks/quantizer_speed.py [--python nncf=…/bin/python] [--python modelopt=…/bin/python]

ResNet-50 with random seeded weights and noise images: the figures show speed only. All graphs are
compiled by the same backend with the same settings; `resnet-opt bench` measures them with one process
per engine and interleaved rounds. Then this package's quantizer and NNCF's are timed alternately on
512 images. Writes ``reports/quantizers/speed.json`` and ``speed.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from quantizers import run_quantizer, slug
from readme import machine

import optimizer
from optimizer.artifacts import write_text_atomically
from optimizer.environment import fingerprint
from optimizer.models import load_model, save_checkpoint
from optimizer.results import BenchResult
from optimizer.targets.hardware import cpu_features
from optimizer.units import parse_duration

REPORTS = Path(__file__).parent.parent / "reports" / "quantizers"
ON_OPENVINO = (
    "ours openvino",
    "ours openvino without VNNI",
    "ours tensorrt",
    "ours tensorrt without shift",
    "nncf symmetric, no bias correction",
    "modelopt max",
    "onnxruntime u8 minmax",
)
TIMED = (
    "ours openvino" if cpu_features().vnni else "ours openvino without VNNI",  # the default here
    "nncf symmetric",
)
ROUNDS = 2
BATCHES = (1, 8)
ON_ONNXRUNTIME = ("ours onnxruntime", "ours onnxruntime without VNNI", "onnxruntime u8 minmax")


def quantize(folder: Path, python: dict[str, str]) -> dict[str, Any]:
    """Make all graphs; returns the facts of each quantizer."""
    export(folder)
    save_images(folder, 32)
    facts = {}
    for name in dict.fromkeys((*ON_OPENVINO, *ON_ONNXRUNTIME)):
        facts[name] = run_quantizer(name, python, folder)
        print(name, facts[name], file=sys.stderr, flush=True)
    return facts


def export(folder: Path) -> None:
    """Export the FP32 graph, unless it exists."""
    checkpoint = folder / "model.safetensors"
    save_checkpoint(load_model("resnet50:random"), checkpoint, details={})
    optimizer.export(str(checkpoint), folder / "fp32.onnx")


def save_images(folder: Path, count: int) -> None:
    """Write noise images as input of the graph."""
    images = np.random.default_rng(0).normal(size=(count, 3, 224, 224)).astype(np.float32)
    np.save(folder / "calibration.npy", images)


def timed(folder: Path, python: dict[str, str]) -> list[dict[str, Any]]:
    """Time and memory of the quantizers on 512 images, alternating."""
    save_images(folder, 512)
    return [
        {"name": name, "images": 512, **run_quantizer(name, python, folder)}
        for _ in range(ROUNDS)
        for name in TIMED
    ]


def compile_graphs(folder: Path, facts: dict[str, Any]) -> dict[str, list[Path]]:
    """Compile the graphs; returns engines by backend."""
    built: dict[str, list[Path]] = {"openvino": [], "onnxruntime": []}
    for engine, names in (("openvino", ON_OPENVINO), ("onnxruntime", ON_ONNXRUNTIME)):
        for name in names:
            if "seconds" not in facts[name]:
                continue
            graph = folder / f"{slug(name)}.{engine}.onnx"
            proto = onnx.load(folder / f"{slug(name)}.onnx")
            reference = onnx.load(folder / "fp32.onnx", load_external_data=False)
            del proto.metadata_props[:]
            for entry in reference.metadata_props:
                value = "int8" if entry.key == "resnet_opt.precision" else entry.value
                proto.metadata_props.add(key=entry.key, value=value)
            onnx.save(proto, graph)
            output = folder / f"{slug(name)}.{engine}"
            fixed = BATCHES if engine == "openvino" else None
            built[engine].append(
                optimizer.build(
                    graph, output, precision="int8", engine=engine, fixed_batch=fixed
                ).path
            )
    return built


def markdown(
    results: dict[str, BenchResult], timings: list[dict[str, Any]], device: dict[str, Any]
) -> str:
    """One table per backend and one of the quantizers' times, measured on ``device``."""
    lines = [
        "# The graphs of several quantizers at 224 px",
        "",
        f"{machine(device)}, {device['cores']} cores.",
        "",
    ]
    for engine, result in results.items():
        lines += [
            f"{engine}; verdict of the run: {result.verdict} ({result.reason}).",
            "",
            f"| graph | batch | images/s | 95 % interval | × {result.engines[0].name} | 95 % interval |",
            "|---|---|---|---|---|---|",
        ]
        ratios = {(c.b, c.batch): c for c in result.comparisons}
        for one in result.engines:
            c, ci = ratios.get((one.name, one.batch)), one.images_per_s_ci95
            lines.append(
                f"| {one.name} | {one.batch} | {one.images_per_s or 0:.1f} | "
                f"{f'{ci[0]:.1f} to {ci[1]:.1f}' if ci else '–'} | {f'{c.ratio:.3f}' if c else '1'} | "
                f"{f'{c.ci95[0]:.3f} to {c.ci95[1]:.3f}' if c else '–'} |"
            )
        lines.append("")
    lines += ["| quantizer, 512 images | s | MiB |", "|---|---|---|"]
    lines += [
        f"| {t['name']} | {t['seconds']:.0f} | {t['peak_rss_bytes'] / 2**20:.0f} |"
        for t in timings
        if "seconds" in t
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--duration", default="5s")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=INTERPRETER")
    parser.add_argument("--timed-only", action="store_true", help="only time the quantizers again")
    options = parser.parse_args()
    python = dict(entry.split("=", 1) for entry in options.python)
    REPORTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = (
            json.loads((REPORTS / "speed.json").read_text(encoding="utf-8"))
            if options.timed_only
            else measured(folder, python, parse_duration(options.duration))
        )
        export(folder)
        raw["timed"] = timed(folder, python)
    write_text_atomically(REPORTS / "speed.json", json.dumps(raw, indent=1) + "\n")
    results = {name: BenchResult.model_validate(one) for name, one in raw["bench"].items()}
    text = markdown(results, raw["timed"], raw["device"])
    write_text_atomically(REPORTS / "speed.md", text)
    print(text)


def measured(folder: Path, python: dict[str, str], duration_s: float) -> dict[str, Any]:
    """Quantize, compile and measure."""
    facts = quantize(folder, python)
    results = {
        engine: optimizer.bench(paths, batch=list(BATCHES), duration=f"{duration_s}s")
        for engine, paths in compile_graphs(folder, facts).items()
    }
    for result in results.values():
        for one in result.engines:
            one.raw_file = None
    return {
        "schema_version": 1,
        "device": fingerprint(),
        "quantizers": facts,
        "bench": {engine: result.model_dump(mode="json") for engine, result in results.items()},
    }


if __name__ == "__main__":
    main()
