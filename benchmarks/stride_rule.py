"""Measures what the shared stride of a ResNet v1 gains in OpenVINO's INT8.

    python benchmarks/stride_rule.py [--arch resnet50_v1] [--starts 5] [--duration 20s] [--quick]

One network, one calibration, and two INT8 graphs: with the rule of `optimizer.graphs.shared_strides`, and
without. Both compute the same, so only speed and the share of INT8 differ. The engines run in processes
of their own, in interleaved rounds, each started several times; the ratio has an interval and the A/A
control beside it. Weights are random and seeded.
Writes ``reports/cpu/stride_rule.json``, ``stride_rule.md`` and the text in docs/int8.md. ``--quick`` is
a smoke test on small images; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from readme import ROOT, machine, write_between_marks, write_record

import optimizer
from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.environment import fingerprint
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import Statistics, compute_encodings, lower
from optimizer.targets.rules import TARGETS
from optimizer.verbs.outcomes import BuildResult

REPORTS = ROOT / "reports" / "cpu"
RULES = {
    "with the rule": TARGETS["openvino"],
    "without it": replace(TARGETS["openvino"], shared_strides=False),
}
PLAIN = EncodingOptions(method="minmax", equalize=False, bias_correction="none")
"""The fastest passes: encodings change no speed."""


def engines(arch: str, size: int, folder: Path) -> dict[str, BuildResult]:
    """The two engines."""
    graph = optimizer.export(f"{arch}:random", folder / "fp32.onnx", image_size=size).path
    images = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), np.uint8)
    np.savez(folder / "noise.npz", images=images, labels=np.arange(16) % 10)
    statistics = optimizer.calibrate(
        graph, folder / "stats.npz", calib=str(folder / "noise.npz"), calib_images=16
    ).path
    built = {}
    for number, (name, rules) in enumerate(RULES.items()):
        model = ir.load(graph)
        encodings = compute_encodings(
            ir.load(graph), Statistics.load(statistics), rules, "0", PLAIN
        )
        lower(model, encodings, rules)
        lowered = folder / f"{number}.onnx"
        ir.save(model, lowered)
        built[name] = optimizer.build(
            lowered, folder / f"{'with' if number == 0 else 'without'}.blob",
            engine="openvino", precision="int8", fixed_batch=(1, 8),
        )  # fmt: skip
    return built


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build and measure."""
    built = engines(options.arch, options.image_size, folder)
    paths = {name: result.path for name, result in built.items()}
    result = optimizer.bench(
        list(paths.values()), against=paths["without it"], batch=options.batch,
        duration=options.duration, starts=options.starts,
    )  # fmt: skip
    return {
        "network": f"{options.arch}:random, {options.image_size} px",
        "starts": options.starts,
        "duration": options.duration,
        "int8_share": {name: result.audit.share for name, result in built.items()},
        "comparisons": [c.model_dump(mode="json") for c in result.comparisons],
        "a_a_control": None
        if result.a_a_control is None
        else result.a_a_control.model_dump(mode="json"),
        "libraries": library_versions("openvino"),
        "device": fingerprint(),
    }


def block(report: dict[str, Any]) -> str:
    """The text in docs/int8.md."""
    shares = report["int8_share"]
    lines = [
        "",
        (
            f"{report['network']}, OpenVINO {report['libraries']['openvino']}, {machine(report['device'])}: "
            f"{shares['without it']:.1%} of the FLOPs are INT8 without the rule, "
            f"{shares['with the rule']:.1%} with it (`python benchmarks/stride_rule.py`, "
            "[record](../reports/cpu/stride_rule.md))."
        ),
        "",
        "| batch | speed with the rule, in units of that without it | 95 % interval | verdict |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {c['batch']} | {c['ratio']:.2f} | {c['ci95'][0]:.2f} to {c['ci95'][1]:.2f} | {c['verdict']} |"
        for c in report["comparisons"]
    ]
    return "\n".join([*lines, ""])


def markdown(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    text = block(report).replace(
        ", [record](../reports/cpu/stride_rule.md)", f", {report['starts']} starts of each engine"
    )
    control = report["a_a_control"]
    line = "none"
    if control is not None:
        line = f"{control['ratio']:.3f} [{control['ci95'][0]:.3f}, {control['ci95'][1]:.3f}]"
    batch = report["comparisons"][0]["batch"]
    return f"# The shared stride of a ResNet v1\n{text}\nA/A control at batch {batch}: {line}.\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--arch", default="resnet50_v1")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--duration", default="20s")
    parser.add_argument("--quick", action="store_true", help="smoke test; figures are meaningless")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder for the report")
    parser.add_argument("--write-only", action="store_true", help="only render the report again")
    options = parser.parse_args()
    if options.quick:
        if options.output == REPORTS:
            parser.error(
                "--quick needs a different --output: its figures must not replace the report"
            )
        options.image_size, options.batch, options.starts, options.duration = 64, "1", 1, "1s"
    if not options.write_only:
        with tempfile.TemporaryDirectory(prefix="stride_rule.") as temporary:
            report = measure(options, Path(temporary))
        write_record(options.output / "stride_rule.json", report)
    report = json.loads((options.output / "stride_rule.json").read_text(encoding="utf-8"))
    write_text_atomically(options.output / "stride_rule.md", markdown(report))
    if options.output == REPORTS:
        write_between_marks(ROOT / "docs" / "int8.md", "stride-rule", block(report))
    print(block(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
