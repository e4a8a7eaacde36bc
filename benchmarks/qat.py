"""Compares INT8 with and without training. Writes ``reports/training/qat.json`` and ``qat.md``.

    python benchmarks/qat.py [--arch resnet18 …] [--target tensorrt …] [--calib-images 256 8] [--epochs 3]

Each network is trained on the digits once (seed 0). For each target and number of calibration images
it is then quantized, trained as INT8 on the 1,257 training images, and both graphs are executed as
written on the 540 held-out images. Which graph `train --qat` would write is in the last column.
Nothing is timed, so the machine need not be quiet. A row that is in the file already, of the same
weights and epochs, is not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from readme import ROOT, machine, write_between_marks

import optimizer
from optimizer.artifacts import Cache, digest, library_versions, write_text_atomically
from optimizer.targets.hardware import cpu_features

_ARCHS = ("resnet18", "resnet34", "resnet50")
_TARGETS = ("tensorrt", "openvino", "onnxruntime")
_RECORDED = "reports/training"
_COLUMNS = (
    "network", "target", "calibration images", "dB PTQ / QAT", "flips PTQ / QAT",
    "top-1 FP32 / PTQ / QAT", "QAT - PTQ, pp", "p top-1 / flips", "written",
)  # fmt: skip


def main() -> int:
    """Compute the missing rows and write the table."""
    options = _options()
    output = Path(options.output)
    path = output / "qat.json"
    if not options.write_only:
        output.mkdir(parents=True, exist_ok=True)
        _measure(options, path)
    result = json.loads(path.read_text(encoding="utf-8"))
    text = markdown(result)
    write_text_atomically(output / "qat.md", text)
    if options.output == _RECORDED:
        write_between_marks(ROOT / "docs/training.md", "qat", "\n" + table(result) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", nargs="+", default=_ARCHS)
    parser.add_argument("--target", nargs="+", default=_TARGETS, choices=_TARGETS)
    parser.add_argument("--calib-images", nargs="+", type=int, default=(256, 8))
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the INT8 training")
    parser.add_argument("--fp32-epochs", type=int, default=8, help="epochs of the FP32 training")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--keep", help="keep networks and graphs in this folder")
    parser.add_argument("-o", "--output", default=_RECORDED)
    parser.add_argument(
        "--write-only", action="store_true", help="regenerate the texts from the recorded JSON"
    )
    return parser.parse_args()


def _measure(options: argparse.Namespace, path: Path) -> None:
    folder = Path(options.keep or tempfile.mkdtemp(prefix="qat."))
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for arch in options.arch:
        checkpoint = folder / f"{arch}.safetensors"
        optimizer.train(
            checkpoint,
            arch=arch,
            image_size=options.image_size,
            epochs=options.fp32_epochs,
            cache=Cache.default(),
        )
        for target in options.target:
            for images in options.calib_images:
                row = {
                    "arch": arch,
                    "weights_sha256": digest(checkpoint),
                    "target": target,
                    "calibration_images": images,
                    "epochs": options.epochs,
                }
                if any(row.items() <= existing.items() for existing in rows):
                    continue
                rows = [old for old in rows if _cell(old) != _cell(row)]
                rows.append(row | _compared(checkpoint, folder, row))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
                _write(rows, path)  # after every row, so that nothing is lost


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("arch", "target", "calibration_images"))


def _compared(checkpoint: Path, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    name = f"{row['arch']}.{row['target']}.{row['calibration_images']}"
    trained = optimizer.train(
        folder / f"{name}.onnx",
        qat="int8",
        target=row["target"],
        init=str(checkpoint),
        calib_images=row["calibration_images"],
        epochs=row["epochs"],
        cache=Cache.default(),
    )
    assert trained.quantized is not None
    raw: dict[str, Any] = trained.quantized.model_dump(mode="json")
    return {name: value for name, value in raw.items() if name not in ("target", "created")}


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    rows = sorted(
        rows,
        key=lambda row: (row["arch"], _TARGETS.index(row["target"]), -row["calibration_images"]),
    )
    result = {
        "schema_version": 1,
        "device": {"cpu": cpu_features().model, "flags": cpu_features().flags},
        "libraries": library_versions("torch", "onnx", "onnxruntime-gpu", "numpy"),
        "rows": rows,
    }
    write_text_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def _line(row: dict[str, Any]) -> str:
    return f"{row['arch']} {row['target']} {row['calibration_images']}: {row['reason']}"


# --- texts ---------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The report."""
    rows = result["rows"]
    data = rows[0]["dataset"]
    libraries = ", ".join(f"{name} {version}" for name, version in result["libraries"].items())
    weights = {row["arch"]: row["weights_sha256"][:12] for row in rows}
    lines = [
        "# INT8 with and without training (QAT and PTQ)",
        "",
        f"Digits at {data['image_size']} px, {data['n']} held-out images. Graphs executed as written.",
        "",
        table(result),
        f"{machine(result['device'])}; {libraries}.",
        "Weights: " + ", ".join(f"{arch} {sha}" for arch, sha in weights.items()) + ".",
        "",
        "`python benchmarks/qat.py` writes this page.",
    ]
    return "\n".join(lines) + "\n"


def table(result: dict[str, Any]) -> str:
    """PTQ and QAT side by side; intervals are paired and of 95 %."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for row in result["rows"]:
        ptq, qat = row["ptq"], row["qat"]
        low, high = row["gain_ci95_pp"]
        top1 = " / ".join(f"{value:.2%}" for value in (row["fp32_top1"], ptq["top1"], qat["top1"]))
        lines.append(
            f"| {row['arch']} | {row['target']} | {row['calibration_images']} "
            f"| {_db(ptq)} / {_db(qat)} | {ptq['flips']} / {qat['flips']} | {top1} "
            f"| {row['gain_pp']:+.2f} ({low:+.2f} to {high:+.2f}) "
            f"| {row['top1_p']:.2g} / {row['flips_p']:.2g} | {row['kept'].upper()} |"
        )
    return "\n".join(lines) + "\n"


def _db(candidate: dict[str, Any]) -> str:
    return "exact" if candidate["sqnr_db"] is None else f"{candidate['sqnr_db']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
