"""Appends decoding and non-maximum suppression to a detector's graph, for use in other programs.

The same steps as `optimizer.tasks.boxes.BoxReader`, in ONNX operators: scores, the best candidates of
each level, decoding, clipping, and NonMaxSuppression per class. Classes are kept apart as torchvision
does it, by moving the boxes of each class to a place of their own.

ONNX Runtime and OpenVINO execute NonMaxSuppression. TensorRT-RTX parses it and fails to build, and in
TensorRT it takes most of a detector's time, so engines of this package end with the head instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.errors import UsageError
from optimizer.graphs.editing import add_constant
from optimizer.graphs.metadata import Metadata, write_metadata
from optimizer.graphs.onnx_files import open_checked, write_checked
from optimizer.models import DetectorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["add_nms", "append_nms"]

_LARGEST_SCALING = math.log(1000 / 16)
_THINNEST = 0.5
"""As in `optimizer.tasks.boxes`."""
_END = np.iinfo(np.int64).max


def append_nms(graph: Path, output: Path, *, cache: Cache | None = None) -> Artifact:
    """Write an exported detector, of any precision, with boxes as its outputs.

    Args:
        graph: A detector's graph that ends with the head.
        output: The ``.onnx`` file to write.
        cache: Artifact cache.

    Raises:
        GraphError: The file cannot be read.
        UsageError: It is no detector, or ends with boxes already.
    """
    opened = open_checked(graph)
    metadata = Metadata.of_proto(opened.proto)
    if metadata.detector is None:
        raise UsageError(
            f"--with-nms is for detectors, and {graph.name} is none", hint="leave it out"
        )
    if metadata.has_nms:
        raise UsageError(f"{graph.name} ends with non-maximum suppression already")
    spec = DetectorSpec.from_dict(metadata.detector)
    plan = Plan(
        kind="graph",
        settings={"precision": metadata.precision, "arch": metadata.arch, "nms": True},
        inputs=[Input.of("graph", graph)],
        libraries=library_versions("onnx", "onnx-ir"),
        preprocessing=metadata.preprocessing,
        classes=tuple(metadata.classes or ()) or None,
    )

    def write(path: Path) -> dict[str, Any]:
        model = opened.to_ir()
        add_nms(model, spec)
        write_checked(model, path)
        return {}

    return produce(plan, output, write, cache=cache)


def add_nms(model: ir.Model, spec: DetectorSpec) -> None:
    """Replace the output of a detector by its boxes, in place.

    There is a second input ``content``, N x 2 float32: width and height in pixels of the part of each
    input that shows the image; the rest is the letterbox. The outputs have one row per detection, best
    first within an image: ``image_index`` int64, the position in the batch; ``boxes`` D x 4 float32, left,
    top, right and bottom in pixels of the input; ``scores`` float32; ``classes`` int64.

    Args:
        model: A graph whose output is N x anchors x values, see `DetectorSpec`.
        spec: Description of the output.
    """
    graph = model.graph
    head = graph.outputs[0]
    assert head.shape is not None
    content = ir.Value(
        name="content",
        shape=ir.Shape([head.shape[0], 2]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    graph.inputs.append(content)
    tail = _Tail(graph, spec)
    head = tail.as_float(head)
    scores, positions = tail.candidates(head)
    boxes, classes = tail.decoded(head, positions, content)
    outputs = tail.suppressed(boxes, scores, classes)
    graph.outputs[:] = list(outputs)
    write_metadata(model, nms="true")


class _Tail:
    """Nodes that are appended to a graph, with names that start with ``nms.``."""

    def __init__(self, graph: ir.Graph, spec: DetectorSpec) -> None:
        self._graph, self._spec = graph, spec
        self._count = 0

    def _node(self, operator: str, *inputs: ir.Value, count: int = 1, **attributes: Any) -> Any:
        """Append a node; returns its output, or all of several."""
        self._count += 1
        name = f"nms.{operator}.{self._count}"
        node = ir.node(operator, list(inputs), attributes=attributes, num_outputs=count, name=name)
        for number, output in enumerate(node.outputs):
            output.name = f"{name}.{number}"
        self._graph.append(node)
        return node.outputs[0] if count == 1 else node.outputs

    def _constant(self, values: Any, kind: Any = np.int64) -> ir.Value:
        self._count += 1
        array: NDArray[Any] = np.asarray(values, kind)
        return add_constant(self._graph, f"nms.constant.{self._count}", array)

    def _part(self, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
        bounds = (self._constant([number]) for number in (start, end, axis))
        part: ir.Value = self._node("Slice", value, *bounds)
        return part

    def as_float(self, head: ir.Value) -> ir.Value:
        """The head as float32, which graphs of half precision may not give."""
        if head.dtype in (None, ir.DataType.FLOAT):
            return head
        cast: ir.Value = self._node("Cast", head, to=ir.DataType.FLOAT)
        return cast

    def candidates(self, head: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Scores and positions (anchor x classes + class) of the best of each level, N x M."""
        spec = self._spec
        scores = self._node("Sigmoid", self._part(head, spec.box_values, _END, 2))
        if spec.kind == "fcos":
            centerness = self._node("Sigmoid", self._part(head, 4, 5, 2))
            scores = self._node("Sqrt", self._node("Mul", scores, centerness))
        best, positions, start = [], [], 0
        for anchors in spec.anchors_per_level:
            level = self._part(scores, start, start + anchors, 1)
            level = self._node("Reshape", level, self._constant([0, -1]))
            count = min(spec.candidates, anchors * spec.num_classes)
            values, indices = self._node("TopK", level, self._constant([count]), count=2, axis=1)
            best.append(values)
            positions.append(self._node("Add", indices, self._constant([start * spec.num_classes])))
            start += anchors
        return (
            self._node("Concat", *best, axis=1),
            self._node("Concat", *positions, axis=1),
        )

    def decoded(
        self, head: ir.Value, positions: ir.Value, content: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Clipped boxes N x M x 4 and classes N x M."""
        classes = self._constant([self._spec.num_classes])
        anchors = self._node("Div", positions, classes)
        labels = self._node("Sub", positions, self._node("Mul", anchors, classes))
        rows = self._node("Unsqueeze", anchors, self._constant([2]))
        codes = self._node("GatherND", self._part(head, 0, 4, 2), rows, batch_dims=1)
        table = self._constant(self._spec.anchors(), np.float32)
        own = self._node("Gather", table, anchors, axis=0)
        corners = self._corners(self._columns(codes), self._columns(own))
        sides = self._node("Unsqueeze", content, self._constant([2]))  # N x 2 x 1
        limits = (self._part(sides, axis, axis + 1, 1) for axis in (0, 1))
        width, height = limits
        zero = self._constant(0, np.float32)
        clipped = [
            self._node("Max", self._node("Min", corner, limit), zero)
            for corner, limit in zip(corners, (width, height, width, height), strict=True)
        ]
        return self._node("Concat", *clipped, axis=2), labels

    def _columns(self, boxes: ir.Value) -> Sequence[ir.Value]:
        return [self._part(boxes, i, i + 1, 2) for i in range(4)]

    def _corners(
        self, codes: Sequence[ir.Value], anchors: Sequence[ir.Value]
    ) -> Sequence[ir.Value]:
        node = self._node
        left, top, right, bottom = anchors
        sides = node("Sub", right, left), node("Sub", bottom, top)
        two = self._constant(2, np.float32)
        centers = [node("Div", node("Add", *pair), two) for pair in ((left, right), (top, bottom))]
        if self._spec.kind == "fcos":
            far = [node("Mul", codes[i], sides[i % 2]) for i in range(4)]
            low = [node("Sub", centers[i], far[i]) for i in (0, 1)]
            return [*low, *(node("Add", centers[i], far[i + 2]) for i in (0, 1))]
        centers = [node("Add", centers[i], node("Mul", codes[i], sides[i])) for i in (0, 1)]
        largest = self._constant(_LARGEST_SCALING, np.float32)
        halves = [
            node("Div", node("Mul", node("Exp", node("Min", codes[i + 2], largest)), sides[i]), two)
            for i in (0, 1)
        ]
        low = [node("Sub", centers[i], halves[i]) for i in (0, 1)]
        return [*low, *(node("Add", centers[i], halves[i]) for i in (0, 1))]

    def suppressed(
        self, boxes: ir.Value, scores: ir.Value, classes: ir.Value
    ) -> Sequence[ir.Value]:
        """The outputs of the graph."""
        spec, node = self._spec, self._node
        apart = self._constant(spec.image_size + 1, np.float32)
        offsets = node("Mul", node("Cast", classes, to=ir.DataType.FLOAT), apart)
        moved = node("Add", boxes, node("Unsqueeze", offsets, self._constant([2])))
        chosen = node(
            "NonMaxSuppression",
            moved,
            node("Unsqueeze", scores, self._constant([1])),
            self._constant([spec.max_detections]),
            self._constant([spec.nms_threshold], np.float32),
            self._constant([spec.score_threshold], np.float32),
        )
        places = node("Gather", chosen, self._constant([0, 2]), axis=1)
        found = node("GatherND", boxes, places)
        sides = node("Sub", self._part(found, 2, 4, 1), self._part(found, 0, 2, 1))
        thinnest = node("ReduceMin", sides, self._constant([1]), keepdims=0)
        keep = node("GreaterOrEqual", thinnest, self._constant(_THINNEST, np.float32))
        image = node("Gather", chosen, self._constant(0), axis=1)
        values = {
            "image_index": (image, ir.DataType.INT64),
            "boxes": (found, ir.DataType.FLOAT),
            "scores": (node("GatherND", scores, places), ir.DataType.FLOAT),
            "classes": (node("GatherND", classes, places), ir.DataType.INT64),
        }
        outputs = []
        for name, (value, kind) in values.items():
            output = node("Compress", value, keep, axis=0)
            shape: list[Any] = ["detections", 4] if name == "boxes" else ["detections"]
            output.dtype, output.shape = kind, ir.Shape(shape)
            output.name = name
            outputs.append(output)
        return outputs
