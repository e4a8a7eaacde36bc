"""Compares INT8 of graphs that people export themselves with INT8 of `resnet-opt export`.

    python benchmarks/foreign_exports.py model.safetensors [--calib digits:train] [--data digits:test]

The same weights are written in several ways by ``torch.onnx.export`` and once by ``resnet-opt export``.
Each file is imported, calibrated on the same images and quantized for each target; the noise of the
INT8 graph, executed as written, is compared with that of the file it came from. A foreign file must
not lose more than 0.3 dB against our own export.
Writes ``reports/sources/exports.json``, ``exports.md`` and the table in docs/sources.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from readme import ROOT, machine, write_between_marks, write_record
from torch import nn

import optimizer
from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.environment import fingerprint
from optimizer.errors import ResnetOptError
from optimizer.models import Model, load_model

REPORTS = ROOT / "reports" / "sources"
TARGETS = ("openvino", "onnxruntime", "tensorrt")
LIMIT_DB = 0.3
OWN = "`resnet-opt export`"


class _Mean(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The pooling as people write it themselves."""
        return features.mean((-2, -1), keepdim=True)


def _images(model: Model) -> torch.Tensor:
    side = model.image_size
    return torch.randn(2, model.channels, side, side, generator=torch.Generator().manual_seed(0))


def _dynamic(model: Model, path: Path, **options: Any) -> None:
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model.module, (_images(model),), path, dynamic_shapes=batch, external_data=False,
        verbose=False, **options,
    )  # fmt: skip


def _default(model: Model, path: Path) -> None:
    torch.onnx.export(model.module, (_images(model),), path, verbose=False)


def _half(model: Model, path: Path) -> None:
    batch = ({0: torch.export.Dim("batch")},)
    half = model.module.half().to(memory_format=torch.channels_last)
    torch.onnx.export(
        half, (_images(model).half(),), path, dynamic_shapes=batch, external_data=False,
        verbose=False,
    )  # fmt: skip


def _mean(model: Model, path: Path) -> None:
    model.module.register_module("avgpool", _Mean())
    _dynamic(model, path)


EXPORTS: dict[str, Callable[[Model, Path], None]] = {
    "torch.onnx.export, dynamic batch": _dynamic,
    "torch.onnx.export, nothing set: fixed batch, external data": _default,
    "torch.onnx.export, not optimized": lambda model, path: _dynamic(model, path, optimize=False),
    "torch.onnx.export, FP16, channels-last": _half,
    "torch.onnx.export, pooling by mean": _mean,
}


def files(checkpoint: str, folder: Path) -> dict[str, Path]:
    """All files of the network; the first is our own export."""
    written = {OWN: optimizer.export(checkpoint, folder / "own.onnx").path}
    for number, (name, export) in enumerate(EXPORTS.items()):
        path = folder / f"{number}.onnx"
        export(load_model(checkpoint), path)  # a new one each time, because some change it
        written[name] = path
    return written


def measure(
    graph: Path, own: Path, target: str, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Quantize a file and measure its noise against the file itself."""
    source: dict[str, Any] = {} if graph == own else {"preprocessing_from": str(own)}
    try:
        int8 = optimizer.quantize(
            graph, folder / f"{graph.stem}.{target}.onnx", precision="int8", target=target,
            calib=options.calib, calib_images=options.calib_images, **source,
        )  # fmt: skip
        result = optimizer.validate(
            int8.path, reference=graph, data=options.data, limit=options.limit, max_drop="100pp",
            **source,
        )  # fmt: skip
    except ResnetOptError as error:
        return {"refused": error.message, "hint": error.hint}
    hop = result.hops[-1]
    return {"sqnr_db": hop.sqnr_db, "flips": hop.flips, "drop_pp": hop.drop_pp,
            "drop_ci95_pp": hop.drop_ci95_pp, "images": hop.n}  # fmt: skip


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure every file for every target."""
    written = files(options.checkpoint, folder)
    rows = []
    for target in TARGETS:
        ours: float | None = None
        for name, path in written.items():
            row = measure(path, written[OWN], target, options, folder)
            if name == OWN:
                ours = row.get("sqnr_db")
            elif ours is not None and row.get("sqnr_db") is not None:
                row["against_own_db"] = row["sqnr_db"] - ours
            rows.append({"file": name, "target": target, **row})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    model = load_model(options.checkpoint)
    return {
        "network": f"{model.arch}, {model.image_size} px",
        "checkpoint_sha256": model.sha256,
        "calib": options.calib,
        "calib_images": options.calib_images,
        "data": options.data,
        "libraries": library_versions(
            "torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime"
        ),
        "device": fingerprint(),
        "rows": rows,
    }


def held(report: dict[str, Any]) -> bool:
    """Whether every file is taken and loses at most `LIMIT_DB` against our own export."""
    foreign = [row for row in report["rows"] if row["file"] != OWN]
    return all(row.get("against_own_db", -1e9) >= -LIMIT_DB for row in foreign)


def block(report: dict[str, Any]) -> str:
    """The table in docs/sources.md."""
    lines = [
        "",
        (
            f"{report['network']}, {report['calib_images']} images of `{report['calib']}` for calibration, "
            f"noise on `{report['data']}` (`python benchmarks/foreign_exports.py`, "
            "[record](../reports/sources/exports.md)):"
        ),
        "",
        "| file | target | INT8 noise (SQNR) | against our export | flips | top-1 lost |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if "refused" in row:
            lines.append(f"| {row['file']} | {row['target']} | refused: {row['refused']} | | | |")
            continue
        against = row.get("against_own_db")
        low, high = row["drop_ci95_pp"]
        lines.append(
            f"| {row['file']} | {row['target']} | {row['sqnr_db']:.1f} dB | "
            f"{'' if against is None else f'{against:+.2f} dB'} | {row['flips']} of {row['images']} | "
            f"{row['drop_pp']:.2f} pp [{low:.2f}, {high:.2f}] |"
        )
    return "\n".join([*lines, ""])


def markdown(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    libraries = ", ".join(f"{name} {version}" for name, version in report["libraries"].items())
    return (
        "# INT8 of graphs that people export themselves\n"
        f"{block(report).replace('[record](../reports/sources/exports.md)', machine(report['device']))}\n"
        f"At most {LIMIT_DB} dB may be lost against our own export: "
        f"{'held' if held(report) else 'not held'}. {libraries}.\n"
    )


def main() -> int:
    """Measure and write; returns 1 if a file is refused or loses more than the limit."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "checkpoint", nargs="?", help="a checkpoint, or a name such as resnet18:random:10"
    )
    parser.add_argument("--calib", default="digits:train")
    parser.add_argument("--calib-images", type=int, default=256)
    parser.add_argument("--data", default="digits:test")
    parser.add_argument("--limit", type=int, help="at most this many images of --data")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder for the report")
    parser.add_argument("--write-only", action="store_true", help="only render the report again")
    options = parser.parse_args()
    if not options.write_only:
        if options.checkpoint is None:
            parser.error("a checkpoint is needed")
        with tempfile.TemporaryDirectory(prefix="foreign_exports.") as temporary:
            report = compare(options, Path(temporary))
        write_record(options.output / "exports.json", report)
    report = json.loads((options.output / "exports.json").read_text(encoding="utf-8"))
    write_text_atomically(options.output / "exports.md", markdown(report))
    if options.output == REPORTS:
        write_between_marks(ROOT / "docs" / "sources.md", "exports", block(report))
    print(block(report))
    return 0 if held(report) else 1


if __name__ == "__main__":
    sys.exit(main())
