"""Compares post-training quantizers. Writes ``reports/quantizers/``.

    python benchmarks/quantizers.py MODEL [--calib digits:train] [--test digits:test]
        [--python nncf=…/bin/python] [--python modelopt=…/bin/python] [--python olive=…/bin/python]

All use the same FP32 graph, calibration images and held-out test images. Each quantizer runs in its
own process. ONNX Runtime executes its graph as written (graph optimizations off), so the error is
that of quantization, not of an engine. Peers in other environments are run by the interpreter of
that environment (``--python``). Peers that cannot be run are listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from quantizer_peers import PEERS
from readme import write_into_readme

from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.data import open_dataset
from optimizer.engines.onnxruntime import as_written
from optimizer.exporting import export_onnx
from optimizer.models import load_model
from optimizer.targets.hardware import cpu_features
from optimizer.targets.rules import TargetRules, rules_for
from optimizer.tasks.tally import Noise

_TIMEOUT_S = 3600


def main() -> int:
    """Run all quantizers and write the table."""
    options = _options()
    output = Path(options.output)
    if not options.write_only:
        output.mkdir(parents=True, exist_ok=True)
        for result in _measured(options):  # after every row, so that nothing is lost
            write_text_atomically(
                output / f"{options.name}.json",
                json.dumps(result, indent=1, allow_nan=False) + "\n",
            )
    result = json.loads((output / f"{options.name}.json").read_text(encoding="utf-8"))
    write_text_atomically(output / f"{options.name}.md", markdown(result))
    if options.name == "quantizers":
        write_into_readme("quantizers", "\n" + _short_table(result) + "\n")
    return 0


def _measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the result so far after each quantizer."""
    python = dict(entry.split("=", 1) for entry in options.python)
    folder = Path(options.keep or tempfile.mkdtemp(prefix="quantizers."))
    folder.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model, image_size=options.image_size)
    graph = export_onnx(model, folder / "fp32.onnx").path
    calibration, _ = _images(options.calib, model.preprocessing, options.calib_images)
    test, labels = _images(options.test, model.preprocessing, options.test_images)
    np.save(folder / "calibration.npy", calibration)
    reference = as_written(graph).run(test)
    head = {
        "schema_version": 1,
        "model": {"arch": model.arch, "sha256": model.sha256, "image_size": model.image_size},
        "data": {"calibration": options.calib, "test": options.test},
        "calibration_images": len(calibration),
        "test_images": len(test),
        "reference_top1": float((reference.argmax(1) == labels).mean()),
        "cpu": {"model": cpu_features().model, "flags": cpu_features().flags},
        "libraries": library_versions("onnxruntime-gpu", "onnx", "torch", "numpy"),
    }
    rows: list[dict[str, Any]] = []
    for name in options.only or PEERS:
        row = {"name": name, "status": "ok"} | run_quantizer(name, python, folder)
        if row["status"] == "ok":
            path = folder / f"{slug(name)}.onnx"
            row |= _quality(path, reference, test, labels) | {"activations": _activations(path)}
            if name.startswith("ours"):
                target = name.split()[1].rstrip(",")
                row["activations_alone_db"] = _activations_alone(
                    graph, path.with_suffix(".encodings.json"), rules_for(target), test, reference
                )
        rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)
        yield {**head, "rows": rows}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="a checkpoint, or a name such as resnet50:random")
    parser.add_argument(
        "--write-only", action="store_true", help="regenerate the texts from the recorded JSON"
    )
    parser.add_argument("--calib", default="digits:train", help="calibration images")
    parser.add_argument("--test", default="digits:test", help="held-out images")
    parser.add_argument(
        "--test-images", type=int, default=None, help="number of test images; all by default"
    )
    parser.add_argument("--calib-images", type=int, default=256)
    parser.add_argument(
        "--only", action="append", choices=PEERS, help="run only this quantizer (repeatable)"
    )
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=INTERPRETER")
    parser.add_argument("--keep", help="keep the graphs in this folder")
    parser.add_argument("--name", default="quantizers", help="name of the two files")
    parser.add_argument("-o", "--output", default="reports/quantizers")
    return parser.parse_args()


def _images(name: str, preprocessing: Any, limit: int | None) -> tuple[Any, Any]:
    dataset = open_dataset(name, limit=limit)
    batches = [(b.images, b.labels) for b in dataset.batches(64, preprocessing)]
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def slug(name: str) -> str:
    """A quantizer's name as part of a file name."""
    return name.replace(",", "").replace(" ", "-")


def run_quantizer(name: str, python: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run one quantizer in its own process; returns its facts or the reason why it failed."""
    # Absolute, because it starts in another folder; not resolved, because in a venv it is a link.
    interpreter = str(Path(python.get(name.split(maxsplit=1)[0], sys.executable)).absolute())
    copy = folder / "input.onnx"  # some quantizers modify their input file
    shutil.copyfile(folder / "fp32.onnx", copy)
    command = [
        interpreter,
        str(Path(__file__).with_name("quantizer_peers.py")),
        name,
        str(copy),
        str(folder / "calibration.npy"),
        str(folder / f"{slug(name)}.onnx"),
    ]
    completed = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, cwd=folder
    )
    if completed.returncode != 0:
        lines = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
        return {
            "status": "not run",
            "reason": lines[-1] if lines else f"exit {completed.returncode}",
        }
    facts: dict[str, Any] = json.loads(completed.stdout.strip().splitlines()[-1])
    return facts


def _quality(path: Path, reference: Any, test: Any, labels: Any) -> dict[str, Any]:
    logits = as_written(path).run(test)
    return {
        "sqnr_db": _db(reference, logits),
        "flips": int((logits.argmax(1) != reference.argmax(1)).sum()),
        "top1": float((logits.argmax(1) == labels).mean()),
    }


def _db(reference: Any, other: Any) -> float:
    noise = Noise()
    noise.add(reference, other)
    ratio = noise.db
    assert ratio is not None, "the graph computes exactly the reference"
    return round(ratio, 2)


def _activations_alone(
    graph: Path, encodings: Path, rules: TargetRules, test: Any, reference: Any
) -> float:
    """SQNR with this package's tensor encodings and FP32 weights: an upper bound for better weights."""
    import onnx_ir as ir
    import torch

    from optimizer.graphs.topology import analyse
    from optimizer.precision.int8 import Encodings
    from optimizer.precision.int8.simulation import Simulation, batches, exact_parameters

    topology = analyse(ir.load(graph))
    chosen = Encodings.load(encodings)
    exact = exact_parameters(topology, chosen.layers)
    simulation = Simulation(topology, rules)
    with torch.no_grad():
        logits = [
            simulation.run(batch, exact, chosen)[topology.output].numpy()
            for batch in batches(test, 64)
        ]
    return _db(reference, np.concatenate(logits))


def _activations(path: Path) -> dict[str, int]:
    """Number of quantized tensors by integer type and zero point."""
    proto = onnx.load(path)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    kinds: Counter[str] = Counter()
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        zero = constants[node.input[2]] if len(node.input) > 2 else np.uint8(0)
        kind = {"int8": "s8", "uint8": "u8"}[str(zero.dtype)]
        point = int(np.ravel(zero)[0])
        kinds[f"{kind} zero {point}" if point in {0, 128} else f"{kind} other"] += 1
    return dict(kinds)


def _best(rows: Iterable[dict[str, Any]], *, signed: bool) -> dict[str, Any] | None:
    """The best peer; with ``signed``, among those that use only s8 with zero point 0."""
    peers = [
        r
        for r in rows
        if r["status"] == "ok"
        and not r["name"].startswith("ours")
        and (not signed or set(r["activations"]) == {"s8 zero 0"})
    ]
    return max(peers, key=lambda r: r["sqnr_db"], default=None)


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"| {row['name']} | not run: {row['reason'][:150]} | | | | | | |"
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["activations"].items())
    bound = f"{row['activations_alone_db']:.2f}" if "activations_alone_db" in row else ""
    return (
        f"| {row['name']} | {row['sqnr_db']:.2f} | {bound} | {row['flips']} | {100 * row['top1']:.2f} "
        f"| {kinds} | {row['seconds']:.0f} | {row['peak_rss_bytes'] / 2**20:.0f} |"
    )


def _short_table(result: dict[str, Any]) -> str:
    """The README's table: the peers, and this package with all passes."""
    lines = ["| quantizer | SQNR dB | flips | activations |", "|---|---|---|---|"]
    for row in result["rows"]:
        name = row["name"]
        if row["status"] != "ok" or name not in PEERS or (name.startswith("ours ") and "," in name):
            continue  # recorded rows of quantizers that are no longer compared stay in the report
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["activations"].items())
        lines.append(f"| {name} | {row['sqnr_db']:.1f} | {row['flips']} | {kinds} |")
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    model = result["model"]
    setting = (
        f"{model['arch']} at {model['image_size']} px: {result['calibration_images']} calibration images "
        f"of `{result['data']['calibration']}`, {result['test_images']} test images of "
        f"`{result['data']['test']}`; "
        f"FP32 top-1 {100 * result['reference_top1']:.2f} %. SQNR is that of the logits against "
        "FP32; *activations alone* is the same with FP32 weights. Graphs are executed as written, "
        "without graph optimizations, in ONNX Runtime."
    )
    machine = (
        f"CPU: {result['cpu']['model']} ({', '.join(result['cpu']['flags'])}); seconds and memory "
        "are of one run each, of the whole quantization, on a machine that was not kept quiet."
    )
    lines = [
        "# Post-training quantizers on the same images",
        "",
        setting,
        machine,
        *([result["note"]] if "note" in result else []),
        "",
        "| quantizer | SQNR dB | activations alone | flips | top-1 % | quantized tensors | s | MiB |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in result["rows"]),
        "",
    ]
    for signed, title in ((True, "s8 with zero point 0, as TensorRT takes"), (False, "any kind")):
        best = _best(result["rows"], signed=signed)
        if best is not None:
            lines.append(f"Best peer, {title}: {best['name']}, {best['sqnr_db']:.2f} dB.  ")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
