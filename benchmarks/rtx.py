"""Consecutive ahead-of-time builds by TensorRT-RTX: size, audit, time and memory of each.

    python benchmarks/rtx.py [--keep FOLDER] [--write-only]

ResNet-50 at 224 px with seeded random weights, batches 1:8:32; no GPU needed. FP32, FP16, INT8 and
FP8 for three targets each, and INT8 for sm75, which compiles to half-precision convolutions and
fails the audit. INT8 and FP8 are calibrated on a few digits without further passes, because sizes and
times do not depend on the scales. Writes ``reports/tensorrt/rtx.json`` and ``rtx.md``, and the table
into docs/tensorrt.md. (A file named ``tensorrt.py`` would shadow the library.)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from readme import ROOT, write_between_marks

import optimizer
from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.environment import fingerprint
from optimizer.errors import UnsupportedPrecision
from optimizer.evaluation import audit
from optimizer.options import EncodingOptions
from optimizer.results import LayerInfo

REPORTS = ROOT / "reports" / "tensorrt"
PROFILE = (1, 8, 32)
BUILDS = [
    *((precision, (target,)) for precision in ("fp32", "fp16", "int8")
      for target in ("sm86", "sm89", "sm120")),
    ("fp8", ("sm86",)),  # refused before the build
    ("fp8", ("sm89",)),
    ("fp8", ("sm120",)),
    ("fp8", ("sm89", "sm120")),
    ("int8", ("sm75",)),  # refused by the audit
]  # fmt: skip
LARGEST_BYTES = {"fp32": 104e6, "fp16": 52e6, "int8": 37e6, "fp8": 104e6}
"""Size limits of a ResNet-50 engine; its weights are stored once."""
_MB, _MIB = 1e6, 2**20


def main() -> int:
    """Build all engines, and write the report and the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--keep", type=Path, help="keep graphs and engines in this folder")
    parser.add_argument("--write-only", action="store_true", help="only regenerate the tables")
    options = parser.parse_args()
    if not options.write_only:
        with tempfile.TemporaryDirectory(prefix="rtx.") as temporary:
            folder = options.keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            result = run(folder)
        if violations := violated_limits(result):
            print("not recorded: " + "; ".join(violations), file=sys.stderr)
            return 1
        REPORTS.mkdir(parents=True, exist_ok=True)
        write_text_atomically(REPORTS / "rtx.json", json.dumps(result, indent=1) + "\n")
    result = json.loads((REPORTS / "rtx.json").read_text(encoding="utf-8"))
    write_text_atomically(REPORTS / "rtx.md", markdown(result))
    write_between_marks(ROOT / "docs" / "tensorrt.md", "rtx", block(result))
    return 0


def run(folder: Path) -> dict[str, Any]:
    """Run all builds one after the other, and check the parent process for leaks."""
    graphs = make_graphs(folder)
    process = psutil.Process()
    rows, completed = [], []
    for precision, targets in BUILDS:
        rows.append(build_one(folder, graphs[precision], precision, targets))
        rows[-1]["parent_rss"] = process.memory_info().rss
        rows[-1]["parent_open_files"] = process.num_fds()
        rows[-1]["parent_children"] = len(process.children(recursive=True))
        if "engine_bytes" in rows[-1]:
            completed.append(rows[-1])
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    first, last = completed[0], completed[-1]
    return {
        "model": "resnet50:random, 224 px",
        "profile": list(PROFILE),
        "libraries": library_versions("tensorrt-rtx", "torch", "onnx"),
        "machine": fingerprint(),
        "load_average": os.getloadavg()[0],
        "builds": rows,
        # Measured after the first build, which loads what later ones reuse.
        "leak": {
            "builds": len(completed),
            "rss_bytes": last["parent_rss"] - first["parent_rss"],
            "open_files": last["parent_open_files"] - first["parent_open_files"],
            "children": last["parent_children"] - first["parent_children"],
            "left_behind": sorted(p.name for p in folder.glob(".*")),
        },
    }


def make_graphs(folder: Path) -> dict[str, Path]:
    """The graph of each precision."""
    graphs = {"fp32": optimizer.export("resnet50:random", folder / "fp32.onnx").path}
    statistics = optimizer.calibrate(
        graphs["fp32"], folder / "fp32.stats.npz", calib="digits:train", calib_images=10
    ).path
    for precision in ("fp16", "int8", "fp8"):
        graphs[precision] = optimizer.quantize(
            graphs["fp32"],
            folder / f"{precision}.onnx",
            precision=precision,
            target="tensorrt-rtx",
            stats=None if precision == "fp16" else statistics,
            options=EncodingOptions(method="minmax", equalize=False, bias_correction="none"),
        ).path
    return graphs


def build_one(
    folder: Path, graph: Path, precision: str, targets: tuple[str, ...]
) -> dict[str, Any]:
    """Run one build with its audit."""
    row: dict[str, Any] = {"precision": precision, "targets": list(targets)}
    output = folder / f"{precision}-{'-'.join(targets)}.rtx"
    started = time.perf_counter()
    try:
        built = optimizer.build(
            graph,
            output,
            precision=precision,
            engine="tensorrt-rtx",
            target=targets,
            profile=PROFILE,
            storage_only=targets == ("sm75",),
        )
    except UnsupportedPrecision as error:
        return {**row, "refused": error.message}
    details = built.manifest.details
    layers = [LayerInfo.model_validate(raw) for raw in details["layers"]]
    outcome = audit(precision, layers)
    seconds = time.perf_counter() - started
    return {
        **row,
        "engine_bytes": output.stat().st_size,
        "layers": len(layers),
        "computed": outcome.computed,
        "verdict": outcome.verdict,
        "library_s": details["build_s"],
        "own_s": seconds - details["build_s"],
        "peak_bytes": details["build_peak_bytes"],
    }


def violated_limits(result: dict[str, Any]) -> list[str]:
    """The violated limits, among those that do not depend on the load of the machine."""
    violations = []
    for build in result["builds"]:
        if "refused" in build:
            continue
        name = f"{build['precision']} for {' + '.join(build['targets'])}"
        limit = LARGEST_BYTES[build["precision"]]
        if build["engine_bytes"] > limit:
            violations.append(f"{name} has {build['engine_bytes']:,} bytes, more than {limit:,.0f}")
        expected = "fail" if build["targets"] == ["sm75"] else "pass"
        if build["verdict"] != expected:
            violations.append(f"{name}: the audit verdict is {build['verdict']}, not {expected}")
    leak = result["leak"]
    if leak["builds"] < 12:
        violations.append(f"only {leak['builds']} builds")
    if leak["open_files"] > 0 or leak["children"] > 0 or leak["rss_bytes"] >= 50 * _MIB:
        violations.append(f"the parent process leaks: {leak}")
    if leak["left_behind"]:
        violations.append(f"left behind: {', '.join(leak['left_behind'])}")
    return violations


def table(result: dict[str, Any]) -> str:
    """The table, with one row per build."""
    lines = [
        "| precision | target | engine | layers | audited | audit | library | own part | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["builds"]:
        head = f"| {row['precision'].upper()} | {' + '.join(row['targets'])} |"
        if "refused" in row:
            lines.append(f"{head} refused: {row['refused']} | | | | | | |")
            continue
        shares = ", ".join(f"{k.upper()} {100 * v:.4g} %" for k, v in row["computed"].items())
        peak = row["peak_bytes"]
        lines.append(
            f"{head} {row['engine_bytes'] / _MB:.1f} MB | {row['layers']} | {shares} | "
            f"{row['verdict']} | {row['library_s']:.1f} s | {row['own_s']:.1f} s | "
            f"{'–' if peak is None else f'{peak / _MIB:.0f} MiB'} |"
        )
    return "\n".join(lines)


def block(result: dict[str, Any]) -> str:
    """The block of docs/tensorrt.md: the table and its conditions."""
    return f"\n{table(result)}\n\n{conditions(result)}\n"


def conditions(result: dict[str, Any]) -> str:
    """Versions and machine of the builds."""
    machine = result["machine"]
    return (
        f"TensorRT-RTX {result['libraries']['tensorrt-rtx']}, {result['model']}, profile "
        f"{':'.join(map(str, result['profile']))}; {machine['cpu']}, {machine['cores']} cores, no GPU "
        f"used, load average {result['load_average']:.1f} at the end."
    )


def markdown(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    leak = result["leak"]
    return (
        "# Ahead-of-time builds by TensorRT-RTX\n\n"
        f"{conditions(result)} *Own part* is all that is not the library's compilation: checks, the "
        "process, the audit, the manifest.\n\n"
        f"{table(result)}\n\n"
        f"{leak['builds']} builds in a row: from the first to the last the process that started them "
        f"changed by {leak['rss_bytes'] / _MIB:+.1f} MiB, {leak['open_files']:+d} open files and "
        f"{leak['children']:+d} child processes; {len(leak['left_behind'])} temporary files were "
        "left behind.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
