"""Compares Keras's ResNets after conversion with Keras itself.

    python benchmarks/keras_logits.py --python ../peers/keras/bin/python [--write-only]

Every network of ``keras.applications`` gets reproducible weights (ImageNet's do not come with Keras).
Keras saves it and computes the logits of three images in the interpreter of its own environment. The
files are then read here, without Keras: V1 as ``.keras`` and ``.weights.h5``, executed by PyTorch and
as exported ONNX; V2 as the ONNX file that Keras exports, through the importing pass. What is written
is the largest difference of a logit from Keras's, in units of Keras's largest logit.
Writes ``reports/keras/logits.json``, ``logits.md`` and the table in docs/sources.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from keras_values import images
from numpy.typing import NDArray
from readme import ROOT, machine, write_between_marks, write_record

import optimizer
from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.engines.onnxruntime import as_written
from optimizer.environment import fingerprint
from optimizer.graphs.import_check import runnable
from optimizer.graphs.import_pass import import_graph
from optimizer.graphs.source_ends import open_source
from optimizer.models import Model, load_model

REPORTS = ROOT / "reports" / "keras"
NETWORKS = ("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2")
LIMITS = {"V1": 1e-5, "V2": 1e-3}
"""Largest difference allowed, in units of the largest logit."""
_TIMEOUT_S = 1800


def run_keras(
    interpreter: Path, name: str, size: int, folder: Path, *, onnx: bool
) -> dict[str, Any]:
    """Let Keras save a network into a folder; returns the versions that ran."""
    command = [
        str(interpreter.absolute()),  # not resolved, because in a venv it is a link
        str(Path(__file__).with_name("keras_models.py")),
        name,
        str(size),
        str(folder),
        *(["--onnx"] if onnx else []),
    ]
    completed = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if completed.returncode != 0:
        raise SystemExit(f"Keras failed on {name}:\n{completed.stderr.strip()[-2000:]}")
    facts: dict[str, Any] = json.loads(completed.stdout.strip().splitlines()[-1])
    return facts


def difference(ours: NDArray[np.float32], keras: NDArray[np.float32]) -> float:
    """The largest difference of a logit, in units of the largest logit of Keras."""
    return float(np.abs(ours - keras).max() / np.abs(keras).max())


def inputs_of(model: Model, size: int) -> NDArray[np.float32]:
    """The images as the converted network takes them."""
    pixels = images(size)
    if model.preprocessing.color == "BGR":
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    return model.preprocessing.normalize(pixels)


def converted(folder: Path, size: int) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """File, executor and logits of a network that is read from Keras's files."""
    import torch

    for file in ("model.keras", "model.weights.h5"):
        model = load_model(folder / file, image_size=size)
        batch = inputs_of(model, size)
        with torch.inference_mode():
            yield file, "PyTorch", model.module(torch.from_numpy(batch)).numpy()
        graph = optimizer.export(folder / file, folder / f"{file}.onnx", image_size=size).path
        yield file, "ONNX, as `export` writes it", as_written(graph).run(batch)


def imported(folder: Path, size: int) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """File, executor and logits of a network that Keras exports to ONNX."""
    source = open_source(folder / "model.onnx")
    graph = import_graph(source).model
    pixels = images(size).astype(np.float32) / 127.5 - 1  # Keras's normalization of V2
    batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    yield (
        "model.onnx",
        "ONNX, as written",
        as_written(runnable(source).SerializeToString()).run(batch),
    )
    import onnx_ir as ir

    written = ir.to_proto(graph).SerializeToString()
    yield "model.onnx", "ONNX, as imported", as_written(written).run(batch)


def compare(interpreter: Path, names: list[str], size: int) -> dict[str, Any]:
    """Compare all networks."""
    rows, versions = [], {}
    for name in names:
        version = "V2" if name.endswith("V2") else "V1"
        with tempfile.TemporaryDirectory(prefix="keras_logits.") as temporary:
            folder = Path(temporary)
            facts = run_keras(interpreter, name, size, folder, onnx=version == "V2")
            versions = facts["versions"]
            expected = np.load(folder / "logits.npy")
            outputs = imported if version == "V2" else converted
            for file, executor, logits in outputs(folder, size):
                row = {
                    "network": name,
                    "version": version,
                    "file": file,
                    "executor": executor,
                    "largest_logit": float(np.abs(expected).max()),
                    "difference": difference(logits, expected),
                }
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "image_size": size,
        "images": 3,
        "keras": versions,
        "libraries": library_versions("torch", "onnx", "onnxruntime-gpu", "onnxruntime"),
        "device": fingerprint(),
        "rows": rows,
    }


def held(report: dict[str, Any]) -> bool:
    """Whether every difference is within its limit."""
    return all(row["difference"] <= LIMITS[row["version"]] for row in report["rows"])


def block(report: dict[str, Any]) -> str:
    """The table in docs/sources.md."""
    keras = report["keras"]
    lines = [
        "",
        (
            f"Keras {keras['keras']} with TensorFlow {keras['tensorflow']}, {report['images']} images of "
            f"{report['image_size']} pixels, reproducible weights (`python benchmarks/keras_logits.py`, "
            "[record](../reports/keras/logits.md)):"
        ),
        "",
        (
            "| network | file | executed by | largest difference from Keras, in units of its largest logit "
            "| limit |"
        ),
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | `{row['file']}` | {row['executor']} | {row['difference']:.1e} | "
        f"{LIMITS[row['version']]:.0e} |"
        for row in report["rows"]
    ]
    return "\n".join([*lines, ""])


def markdown(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    libraries = ", ".join(f"{name} {version}" for name, version in report["libraries"].items())
    return (
        "# Keras's ResNets after conversion, compared with Keras\n"
        f"{block(report).replace('[record](../reports/keras/logits.md)', machine(report['device']))}\n"
        f"Versions here: {libraries}. The logits are those before the softmax.\n"
    )


def main() -> int:
    """Compare and write; returns 1 if a difference exceeds its limit."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--python", type=Path, help="interpreter with keras, tensorflow and tf2onnx"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder for the report")
    parser.add_argument("--write-only", action="store_true", help="only render the report again")
    options = parser.parse_args()
    if not options.write_only:
        if options.python is None:
            parser.error("--python is needed: an interpreter with keras, tensorflow and tf2onnx")
        report = compare(options.python, options.networks, options.image_size)
        write_record(options.output / "logits.json", report)
    report = json.loads((options.output / "logits.json").read_text(encoding="utf-8"))
    write_text_atomically(options.output / "logits.md", markdown(report))
    if options.output == REPORTS:
        write_between_marks(ROOT / "docs" / "sources.md", "keras", block(report))
    print(block(report))
    return 0 if held(report) else 1


if __name__ == "__main__":
    sys.exit(main())
