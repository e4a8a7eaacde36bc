"""Writes the table of ONNX files in docs/sources.md: ``python -m tests.graphs.sources_table``.

Each row is a file that is really imported, compared with its source, or refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from optimizer.errors import GraphError
from optimizer.graphs.import_check import check_import, images_for
from optimizer.graphs.import_pass import import_graph
from optimizer.graphs.rewriting import Change
from optimizer.graphs.source_ends import open_source
from optimizer.options import ForeignGraph
from tests.graphs.dresses import Dress, write

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
BLOCK = re.compile(r"(<!-- onnx -->\n).*?(<!-- /onnx -->)", re.DOTALL)

ROWS: dict[str, tuple[Dress, ForeignGraph]] = {
    "as `resnet-opt export` writes it": (Dress(), ForeignGraph()),
    "MXNet, model zoo: opset 8, BatchNorm, initializers as inputs": (
        Dress(opset=8, ir_version=3, batchnorm="kept", constants="inputs"), ForeignGraph(),
    ),
    "Caffe2: no names, Reshape, Softmax": (
        Dress(
            opset=9, ir_version=3, batchnorm="kept", constants="inputs", names=False,
            flat="Reshape", tail="Softmax",
        ),
        ForeignGraph(),
    ),
    "Constant nodes, opset 11": (Dress(opset=11, ir_version=6, constants="nodes"), ForeignGraph()),
    "torch.onnx.export: ReduceMean, Reshape": (Dress(pool="ReduceMean", flat="Reshape"), ForeignGraph()),
    "average pooling over the whole map, Squeeze": (
        Dress(opset=12, pool="AveragePool", flat="Squeeze"), ForeignGraph(),
    ),
    "NHWC input, MatMul": (
        Dress(opset=15, nhwc=True, head="MatMul", tail="Softmax"), ForeignGraph(),
    ),
    "FP16": (Dress(dtype=np.float16), ForeignGraph()),
    "FP64": (Dress(dtype=np.float64), ForeignGraph()),
    "fixed batch": (Dress(batch=3), ForeignGraph()),
    "dynamic height and width": (Dress(size=("height", "width")), ForeignGraph()),
    "images that are not square, `--crop 16`": (
        Dress(size=(16, 24), pool="ReduceMean"), ForeignGraph(crop=16),
    ),
    "ArgMax as the only output": (Dress(opset=11, ir_version=6, outputs="argmax"), ForeignGraph()),
    "scores and their ArgMax": (Dress(opset=11, ir_version=6, outputs="argmax+scores"), ForeignGraph()),
    "two outputs": (Dress(outputs="scores+features"), ForeignGraph()),
    "two outputs, `--output-name scores`": (
        Dress(outputs="scores+features"), ForeignGraph(output_name="scores"),
    ),
    "BatchNorm in training mode": (Dress(opset=15, batchnorm="training"), ForeignGraph()),
    "BatchNorm in training mode, `--inference-mode`": (
        Dress(opset=15, batchnorm="training"), ForeignGraph(inference_mode=True),
    ),
    "Dropout in training mode": (Dress(opset=15, dropout="training"), ForeignGraph()),
}  # fmt: skip


def table() -> str:
    """The rows as Markdown."""
    lines = ["| file | result | what was changed, or what to do |", "|---|---|---|"]
    with TemporaryDirectory() as folder:
        for title, (dress, options) in ROWS.items():
            path = write(Path(folder) / "model.onnx", dress)
            try:
                source = open_source(path, options)
                imported = import_graph(source)
                check_import(source, imported, images_for(source, None))
            except GraphError as error:
                lines.append(f"| {title} | refused: {error.message} | {error.hint} |")
                continue
            lines.append(f"| {title} | taken | {_rules(imported.changes)} |")
    return "\n".join(lines) + "\n"


def _rules(changes: list[Change]) -> str:
    return "; ".join(dict.fromkeys(change.rule for change in changes)) or "nothing"


def page() -> str:
    """docs/sources.md with a new table."""
    block = table()
    return BLOCK.sub(lambda match: match[1] + block + match[2], PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
