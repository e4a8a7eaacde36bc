"""Compares INT8 quantizers on a detector. Writes ``reports/detection/NAME.json`` and ``.md``.

    python benchmarks/detection_quantizers.py DETECTOR [--python nncf=…/bin/python] [--test-images 300]

DETECTOR is a checkpoint for ``digits-scenes``, from ``resnet-opt train --arch retinanet_resnet50_fpn
--data digits-scenes:train``. All quantizers use the same FP32 graph and calibration images. Their graphs
are executed as written, and read by the same post-processing. Peers in other environments are run by the
interpreter of that environment. Then INT8 engines are built, and the share of the FLOPs that they compute
in INT8 is read from their own layer lists.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from quantizers import run_quantizer, slug

import optimizer
from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.data import ImageDataset, open_dataset
from optimizer.engines import get_backend
from optimizer.engines.onnxruntime import as_written
from optimizer.environment import fingerprint
from optimizer.errors import ResnetOptError
from optimizer.exporting import export_onnx
from optimizer.models import Model, load_model
from optimizer.results import Gates, Hop
from optimizer.tasks import Detection
from optimizer.tasks.detection import BatchDetections
from optimizer.tasks.detection_tally import DetectionTally

OUTPUT = Path(__file__).parent.parent / "reports" / "detection"
QUANTIZERS = (
    "ours openvino", "ours onnxruntime", "ours tensorrt", "onnxruntime s8 minmax", "onnxruntime u8 minmax",
    "nncf symmetric", "nncf mixed",
)  # fmt: skip
ENGINES = ("openvino", "onnxruntime", "tensorrt-rtx")
_BATCH = 25


class Comparison:
    """Compares graphs with the FP32 graph of a detector on the same images."""

    def __init__(self, model: Model, graph: Path, data: ImageDataset) -> None:
        assert model.detector is not None
        task = Detection(model.detector, model.preprocessing).for_gates(Gates(max_drop_pp=1))
        self._task, self._preprocessing = task, model.preprocessing
        self._data = task.match(data, model.num_classes, model.classes)
        self._reference = self._predictions(graph)

    def hop(self, graph: Path | None) -> Hop:
        """What a validation would measure; of the FP32 graph itself for ``None``."""
        found = self._reference if graph is None else self._predictions(graph)
        tallies = {"reference": self._tally(self._reference), "graph": self._tally(found)}
        self._task.finish(tallies, {"graph": "reference"}, self._data)
        fields = self._task.fields(tallies["graph"], self._data, is_reference=graph is None)
        return Hop(
            name="graph", engine=None, executor="", parent="reference", precision="int8", **fields
        )

    def _tally(self, found: list[tuple[Any, BatchDetections]]) -> DetectionTally:
        tally = self._task.tally()
        for (indices, own), (_, reference) in zip(found, self._reference, strict=True):
            self._task.add(tally, own, self._data, indices, (reference, None))
        return tally

    def _predictions(self, graph: Path) -> list[tuple[Any, BatchDetections]]:
        network, found = as_written(graph), []
        for batch in self._data.batches(_BATCH, self._preprocessing):
            outputs = network.run(batch.images)
            found.append((batch.indices, self._task.read(outputs, self._data, batch.indices)))
        return found


def rows_of(
    comparison: Comparison, names: list[str], python: dict[str, str], folder: Path
) -> Iterator[dict[str, Any]]:
    """One row per quantizer."""
    for name in names:
        row = {"name": name, "status": "ok"} | run_quantizer(name, python, folder)
        if row["status"] == "ok":
            hop = comparison.hop(folder / f"{slug(name)}.onnx")
            row |= hop.model_dump(mode="json", include={"drop_pp", "drop_ci95_pp", "sqnr_db"})
            assert hop.detection is not None
            row |= hop.detection.model_dump(
                mode="json",
                include={"ap", "detections", "lost", "new", "score_change", "sqnr_scores_db"},
            )
        print(json.dumps(row), file=sys.stderr, flush=True)
        yield row


def shares_of(graph: Path, calib: str, images: int, folder: Path) -> list[dict[str, Any]]:
    """The share of the FLOPs that each INT8 engine computes in INT8."""
    shares: list[dict[str, Any]] = []
    for engine in ENGINES:
        output = folder / f"{engine}{get_backend(engine).suffix}"
        more: dict[str, Any] = {"target": ["sm86"]} if engine == "tensorrt-rtx" else {}
        try:
            built = optimizer.build(
                graph,
                output,
                engine=engine,
                precision="int8",
                calib=calib,
                calib_images=images,
                **more,
            )
        except ResnetOptError as error:
            shares.append({"engine": engine, "status": "not built", "reason": error.message})
            continue
        shares.append(
            {
                "engine": engine,
                "status": "ok",
                "computed": built.audit.computed,
                "differing": [layer.name for layer in built.audit.differing],
            }
        )
    return shares


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    reference = record["reference"]
    lines = [
        (
            f"{record['arch']}, {record['image_size']} px, on {record['test_images']} images of "
            f"{record['test']}; FP32: AP {reference['ap']:.3f}, AP50 {reference['ap50']:.3f}, "
            f"{reference['detections']} detections above {reference['score_threshold']:g}."
        ),
        "",
        "| quantizer | box SQNR, dB | logit SQNR, dB | lost | new | lost + new | AP drop, pp [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        if row["status"] != "ok":
            lines.append(f"| {row['name']} | not run: {row['reason']} | | | | | |")
            continue
        low, high = row["drop_ci95_pp"]
        share = (row["lost"] + row["new"]) / max(reference["detections"], 1)
        lines.append(
            f"| {row['name']} ({row['version']}) | {row['sqnr_db']:.1f} | {row['sqnr_scores_db']:.1f} | "
            f"{row['lost']} | {row['new']} | {share:.1%} | {row['drop_pp']:+.2f} [{low:.2f}, {high:.2f}] |"
        )
    lines += ["", "| INT8 engine | FLOPs in INT8 |", "|---|---|"]
    for share in record["engines"]:
        text = (
            f"{share['computed'].get('int8', 0):.1%}"
            if share["status"] == "ok"
            else share["reason"]
        )
        lines.append(f"| {share['engine']} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a detector's checkpoint")
    parser.add_argument("--calib", default="digits-scenes:train")
    parser.add_argument("--calib-images", type=int, default=128)
    parser.add_argument("--test", default="digits-scenes:test")
    parser.add_argument("--test-images", type=int, default=None)
    parser.add_argument("--only", action="append", help="only this quantizer (repeatable)")
    parser.add_argument("--no-engines", action="store_true", help="do not build engines")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=INTERPRETER")
    parser.add_argument("--keep", help="keep the graphs in this folder")
    parser.add_argument("--name", default="quantizers", help="name of the two files")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    python = dict(entry.split("=", 1) for entry in options.python)
    folder = Path(options.keep or tempfile.mkdtemp(prefix="detection."))
    folder.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)
    graph = export_onnx(model, folder / "fp32.onnx").path
    calibration = open_dataset(options.calib, limit=options.calib_images)
    images = [batch.images for batch in calibration.batches(64, model.preprocessing)]
    np.save(folder / "calibration.npy", np.concatenate(images))
    comparison = Comparison(model, graph, open_dataset(options.test, limit=options.test_images))
    reference = comparison.hop(None)
    assert reference.detection is not None
    record: dict[str, Any] = {
        "arch": model.arch,
        "sha256": model.sha256,
        "image_size": model.preprocessing.image_size,
        "test": options.test,
        "test_images": reference.n,
        "calibration": options.calib,
        "calibration_images": options.calib_images,
        "device": fingerprint(),
        "libraries": library_versions("onnxruntime-gpu", "onnx", "torch", "numpy", "openvino"),
        "reference": reference.detection.model_dump(
            mode="json", include={"ap", "ap50", "detections", "score_threshold"}
        ),
        "rows": list(rows_of(comparison, list(options.only or QUANTIZERS), python, folder)),
        "engines": []
        if options.no_engines
        else shares_of(graph, options.calib, options.calib_images, folder),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_text_atomically(options.output / f"{options.name}.json", text)
    write_text_atomically(options.output / f"{options.name}.md", markdown(record))
    print(markdown(record))
    if not options.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
